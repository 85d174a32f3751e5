"""Pipelines of pixels without diffusers' classes: the same images, and nothing imported that is not needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmq_fx.errors import CalibrationError, ModelError
from dmq_fx.models import LoadedModel, load_model
from dmq_fx.models.pixels import PixelPipeline, load_pixels
from dmq_fx.sampling import Sampler, SamplerOptions

OPTIONS = SamplerOptions(steps=4, batch=2, seed=3)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(params=["DDIMPipeline", "DDPMPipeline"])
def folder(request: pytest.FixtureRequest, pipeline_folder: Path, tmp_path: Path) -> Path:
    """The tiny pipeline as one of either class; a DDIM pipeline over DDPM's scheduler, which it makes its own."""
    copied = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder, copied)
    change(copied / "model_index.json", _class_name=request.param, scheduler=["diffusers", "DDPMScheduler"])
    change(copied / "scheduler" / "scheduler_config.json", _class_name="DDPMScheduler")
    return copied


def images(loaded: LoadedModel, denoiser: torch.nn.Module) -> torch.Tensor:
    return torch.cat(list(Sampler(loaded, OPTIONS).run(3, denoiser)))


def test_images_are_those_of_the_pipeline(folder: Path) -> None:
    whole = load_model(str(folder))
    bare = load_model(str(folder), weights=False)
    assert isinstance(bare.pipeline, PixelPipeline) and not bare.has_weights
    assert (bare.component, bare.class_name, bare.origin) == ("unet", "UNet2DModel", str(folder))
    assert whole.config.items() >= bare.config.items() and bare.config["block_out_channels"] == [16, 32]
    expected, found = images(whole, whole.denoiser), images(bare, whole.denoiser)
    assert expected.std() > 0.1 and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("model_index.json", {"_class_name": "PNDMPipeline"}),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}),
        ("unet/config.json", {"sample_size": None}),
    ],
    ids=["other class", "other parts", "no size"],
)
def test_other_pipelines_are_left_to_diffusers(folder: Path, file: str, values: dict[str, Any]) -> None:
    assert load_pixels(folder, "here") is not None
    change(folder / file, **values)
    assert load_pixels(folder, "here") is None


@pytest.mark.parametrize("scheduler", [["diffusers", "PNDMScheduler"], ["diffusers"], "DDPMScheduler"])
def test_a_scheduler_of_another_class_is_left_to_diffusers(folder: Path, scheduler: Any) -> None:
    change(folder / "model_index.json", _class_name="DDPMPipeline", scheduler=scheduler)
    assert load_pixels(folder, "here") is None


def test_a_scheduler_that_diffusers_refuses(folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", beta_schedule="foo")
    with pytest.raises(ModelError, match=r"Pipeline cannot be loaded: .*foo.* is not implemented") as caught:
        load_model(str(folder), weights=False)
    assert caught.value.where == str(folder)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"unet": ["my_code", "UNet2DModel"]}, "component 'unet' comes from 'my_code'"),
        ("unet/config.json", {"_class_name": None}, "'_class_name' is missing"),
    ],
)
def test_folders_that_are_refused(folder: Path, file: str, values: dict[str, Any], message: str) -> None:
    change(folder / file, **values)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder), weights=False)
    assert caught.value.where == str(folder / file)


def test_what_needs_a_denoiser_says_so(folder: Path) -> None:
    loaded = load_model(str(folder), weights=False)
    with pytest.raises(ModelError, match="the pipeline has no denoiser"):
        next(Sampler(loaded, OPTIONS).run(1))
    with pytest.raises(CalibrationError, match="the sampler 'euler' needs the denoiser") as caught:
        Sampler(loaded, replace(OPTIONS, scheduler="euler"))
    assert caught.value.where == str(folder)


def test_sides_of_an_image(folder: Path) -> None:
    change(folder / "unet" / "config.json", sample_size=[8, 24])
    loaded = load_pixels(folder, "here")
    assert loaded is not None and loaded.pipeline is not None
    seen = []

    def unet(x: torch.Tensor, t: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        seen.append(x.shape)
        return (x,)

    loaded.pipeline.unet = unet
    (found,) = loaded.pipeline(2, 3, [torch.Generator().manual_seed(k) for k in range(2)])  # type: ignore[operator]
    assert seen == [(2, 3, 8, 24)] * 3 and found.shape == (2, 8, 24, 3)


def test_models_of_diffusers_are_not_imported(pipeline_folder: Path) -> None:
    slow = {"diffusers.models.modeling_utils", "transformers", "torchao", "scipy.stats"}
    code = (
        "import sys; from dmq_fx.models import load_model; "
        f"load_model({str(pipeline_folder)!r}, weights=False); "
        f"print(sorted({slow} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert said.stdout.splitlines()[-1] == "[]"
