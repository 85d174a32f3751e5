"""A loaded artifact stands where the denoiser stood."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline
from torch import nn

import dmq_fx
from dmq_fx import loading
from dmq_fx.artifact.opened import build_skeleton, open_artifact
from dmq_fx.errors import BackendError, ModelError
from dmq_fx.runtime import Original, QuantizedDenoiser
from dmq_fx.tracing import InputError, TracedModel


@pytest.fixture(scope="module")
def quantized(artifact: Path) -> QuantizedDenoiser:
    return dmq_fx.load(artifact)


@pytest.fixture(scope="module")
def pipeline(pipeline_folder: Path) -> DDIMPipeline:
    pipeline = DDIMPipeline.from_pretrained(pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_pipeline_with_a_swapped_denoiser(quantized: QuantizedDenoiser, pipeline_folder: Path) -> None:
    pipeline = DDIMPipeline.from_pretrained(pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for denoiser in (pipeline.unet, quantized):
        pipeline.unet = denoiser
        generator = [torch.Generator().manual_seed(seed) for seed in range(3)]
        images.append(pipeline(3, generator, num_inference_steps=4, output_type="np").images)
    exact, found = images
    assert exact.shape == found.shape == (3, 16, 16, 3)
    error = ((exact - found) ** 2).mean()
    assert 0 < error < 1e-2


def test_called_like_the_original(quantized: QuantizedDenoiser, pipeline: DDIMPipeline) -> None:
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        exact = pipeline.unet(x, 750).sample
        forms = (
            quantized(x, 750).sample,
            quantized(x, torch.tensor(750), return_dict=False)[0],
            quantized(sample=x, timestep=torch.tensor([750, 750])).sample,
            quantized(x, 750, class_labels=None)[0],
        )
    for form in forms:
        assert torch.equal(form, forms[0])
    assert float((exact - forms[0]).square().mean() / exact.square().mean()) < 2e-2


def test_attributes_are_those_of_the_original(quantized: QuantizedDenoiser, pipeline: DDIMPipeline) -> None:
    assert quantized.config.sample_size == 16
    assert quantized.config["in_channels"] == 3
    assert quantized.dtype == torch.float32
    assert quantized.device == torch.device("cpu")
    assert quantized.time_embedding.linear_1.in_features == 16
    assert quantized.info["recipe"]["name"] == "ptq/w8a8"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = quantized.nonsense


def test_the_original_is_built_when_more_is_asked_than_its_configuration() -> None:
    built: list[nn.Module] = []

    def build() -> nn.Module:
        built.append(nn.Linear(3, 2))
        return built[-1]

    original = Original(build, {"sample_size": 8})
    assert original.config.sample_size == 8 and original.config is original.config and built == []
    found = QuantizedDenoiser(nn.Identity(), TracedModel.__new__(TracedModel), original, {})
    assert found.config.sample_size == 8 and built == []
    assert found.in_features == 3 and found.out_features == 2 and len(built) == 1
    assert Original(build).config == {} and len(built) == 2


def test_kept_code_knows_its_model(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact's configuration is that of one release of diffusers; a class that is missing is an error at once."""
    opened = open_artifact(artifact)
    built: list[str] = []
    monkeypatch.setattr(loading, "build_skeleton", lambda opened: built.append("built") or build_skeleton(opened))
    assert loading._original(opened).config.in_channels == 3 and built == []
    monkeypatch.setattr(loading, "package_versions", lambda: {"diffusers": "0.0.1"})
    assert loading._original(opened).config.in_channels == 3 and built == ["built"]
    monkeypatch.undo()
    opened.model["class_name"] = "OfMyOwn"
    with pytest.raises(ModelError, match="diffusers has no class 'OfMyOwn'"):
        loading._original(opened)


def test_any_batch(quantized: QuantizedDenoiser) -> None:
    """The traced model must not have fixed a batch: 1, and 65 (diffusers branches at 64)."""
    x = torch.randn(65, 3, 16, 16)
    with torch.no_grad():
        many = quantized(x, 10).sample
        one = quantized(x[7:8], 10).sample
    assert many.shape == x.shape
    assert float((many[7:8] - one).square().mean() / one.square().mean()) < 1e-2


def test_input_that_was_not_traced(quantized: QuantizedDenoiser) -> None:
    with pytest.raises(InputError, match="the trace has not seen the argument 'class_labels'"):
        quantized(torch.randn(2, 3, 16, 16), 1, class_labels=torch.tensor([1, 2]))


def test_other_size(quantized: QuantizedDenoiser) -> None:
    with pytest.raises(InputError, match=r"sample has shape \[2, 3, 32, 32\], expected \[2, 3, 16, 16\]"):
        quantized(torch.randn(2, 3, 32, 32), 1)


def test_type_is_kept(quantized: QuantizedDenoiser) -> None:
    with pytest.raises(BackendError, match="keeps the type that it was compiled with"):
        quantized.to(torch.float16)
    assert quantized.to("cpu") is quantized


def test_what_would_change_only_the_empty_copy_is_refused(quantized: QuantizedDenoiser, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"cannot do save_pretrained\(\)"):
        quantized.save_pretrained(tmp_path)


def test_state_is_integers(quantized: QuantizedDenoiser) -> None:
    state = quantized.state_dict()
    assert state["lowered.conv_in.weight"].dtype == torch.int8
    assert not any(parameter.requires_grad for parameter in quantized.parameters())


@pytest.mark.parametrize("device", ["cuda"])
def test_device_that_is_not_there(artifact: Path, device: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(BackendError, match="no CUDA device is available"):
        dmq_fx.load(artifact, device=device)
