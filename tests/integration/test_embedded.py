"""The embedded models: they load in plain diffusers, and what dmq makes of them is as good as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline
from small_programs import needs_vnni

import dmq_fx
from dmq_fx.artifact.files import STATISTICS
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.models import load_model

ASSETS = Path(__file__).parent.parent.parent / "assets"
QUICK = ("calibration.samples=16", "calibration.batch=8", "calibration.steps=5")
MODELS = ("ddpm-mnist", "ddpm-cifar10-vehicles")


@pytest.mark.parametrize("name", MODELS)
def test_diffusers_loads_it_as_it_stands(name: str) -> None:
    pipeline = DDIMPipeline.from_pretrained(ASSETS / name)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 32, 32, pipeline.unet.config.out_channels)
    assert (ASSETS / name / "README.md").read_text().startswith(f"# {name}")


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_half_precision(name: str) -> None:
    file = ASSETS / name / "unet" / "diffusion_pytorch_model.safetensors"
    loaded = load_model(f"builtin:{name}")
    count = sum(parameter.numel() for parameter in loaded.denoiser.parameters())
    assert 3e6 < count < 8e6
    assert file.stat().st_size < 2.02 * count


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, cache: CalibrationCache) -> dict[str, Path]:
    """Artifacts of the digit model, by recipe."""
    folder = tmp_path_factory.mktemp("embedded")
    found = {}
    for recipe in ("ptq/w8a8", "ptq/w4a8", "ptq/w4a6"):
        found[recipe] = folder / recipe.replace("/", "-")
        dmq_fx.compile(recipe, output=found[recipe], overrides=QUICK, cache=cache)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ptq/w8a8", "ptq/w4a8"])
def test_size_on_disk_is_what_the_bits_make(compiled: dict[str, Path], recipe: str) -> None:
    """Packed weights, scales, zero points, tables and what stays in full precision: the tensors within 3 %.

    With the tables for people (JSON, HTML) it is within 5 % even of a model as small as this one; distributions apart.
    """
    opened = open_artifact(compiled[recipe])
    denoiser = load_model("builtin:ddpm-mnist").denoiser
    expected, quantized = 0.0, 0
    for site in opened.sites["sites"]:
        if "precision" not in site:
            continue
        weight = opened.sites["schemes"][site["precision"]]["weight"]
        count = torch.Size(site["shape"]).numel()
        quantized += count
        expected += count * weight["bits"] / 8 + site["shape"][0] * (4 if weight["symmetric"] else 5)
        expected += 0 if "to_k" in site["name"] or "to_v" in site["name"] else opened.sites["slots"] * 5
    rest = sum(parameter.numel() for parameter in denoiser.parameters()) - quantized
    expected += 2 * rest  # the shipped weights are half precision, and so is what is left of them
    sizes = {file.name: file.stat().st_size for file in compiled[recipe].iterdir()}
    assert sizes["model.safetensors"] == pytest.approx(expected, rel=0.03)
    distributions = sizes.pop(STATISTICS)  # `--no-report` leaves them out
    assert sum(sizes.values()) == pytest.approx(expected, rel=0.05)
    assert distributions < 300_000


@pytest.mark.slow
def test_error_grows_as_bits_go(compiled: dict[str, Path]) -> None:
    """8 bits cannot be told from full precision; 4-bit weights can; 6-bit activations add their own error."""
    found = [
        dmq_fx.evaluate(compiled[recipe], samples=16, steps=5, batch=16, seed=100)
        for recipe in ("ptq/w8a8", "ptq/w4a8", "ptq/w4a6")
    ]
    w8a8, w4a8, w4a6 = found
    assert w8a8.final_psnr is not None and w4a8.final_psnr is not None and w4a6.final_psnr is not None
    assert w8a8.final_psnr > 38 > w4a8.final_psnr and w4a6.final_psnr < 38
    assert 2 * w8a8.trajectory_mse[0] < w4a8.trajectory_mse[0] < 0.7 * w4a6.trajectory_mse[0]
    assert w4a8.trajectory_mse[-1] > w4a8.trajectory_mse[0]  # errors pile up along the trajectory


@needs_vnni
@pytest.mark.slow
def test_native_code_has_the_error_of_fake_quantization(compiled: dict[str, Path]) -> None:
    """README's own artifact by int8 kernels: what lies between its integers may be in bfloat16, which adds a little."""
    fake, native = (
        dmq_fx.evaluate(compiled["ptq/w8a8"], samples=8, steps=5, batch=8, seed=100, backend=backend)
        for backend in ("fake_quant", "x86_int8")
    )
    assert native.prediction_mse_same_input == pytest.approx(fake.prediction_mse_same_input, rel=0.25)
    assert native.final_psnr is not None and native.final_psnr > 38
