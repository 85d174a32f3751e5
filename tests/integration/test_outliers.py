"""benchmarks/outliers.py: what a model computes stays, and channels that stand out are really there."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from dmq_fx.models import load_model

PATH = Path(__file__).parent.parent.parent / "benchmarks" / "outliers.py"
TOLERANCE = 1e-4
"""Largest difference of the output, over its standard deviation; GroupNorm's epsilon is most of it."""


@pytest.fixture(scope="module")
def outliers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dmq_benchmarks_outliers", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def unet_call(channels: int, size: int) -> dict[str, Tensor]:
    sample = torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(0))
    return {"sample": sample, "timestep": torch.tensor([10, 300, 600, 950])}


def output(denoiser: nn.Module, call: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return denoiser(**call).sample


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("name", ["ddpm-mnist", "ddpm-cifar10-vehicles"])
def test_embedded_models_get_outliers_and_compute_the_same(outliers: ModuleType, name: str) -> None:
    original = load_model(f"builtin:{name}").denoiser
    call = unet_call(original.config.in_channels, 32)
    planted = copy.deepcopy(original)
    lines = outliers.plant(planted, factor=20.0, seed=1)
    assert largest_difference(output(planted, call), output(original, call)) < TOLERANCE
    for kind in ("to_q: input", "to_out.0: input", "conv_shortcut: decoder half", "conv_shortcut: encoder half"):
        assert any(kind in line for line in lines), kind
    sites = [line.split(":")[0] for line in lines]
    before, after = (outliers.channel_peaks(model, sites, call) for model in (original, planted))
    for site in sites:
        assert float(before[site].max() / before[site].median()) < 5, site
        assert float(after[site].max() / after[site].median()) > 10, site


def test_the_choice_follows_the_seed(outliers: ModuleType, architectures: ModuleType) -> None:
    models = [architectures.tiny_model("ddpm") for _ in range(3)]
    lines = [outliers.plant(model, seed=seed) for model, seed in zip(models, (3, 3, 4), strict=True)]
    assert lines[0] == lines[1] != lines[2]
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["ddpm", "sd", "sdxl"])
def test_text_models_compute_the_same(
    outliers: ModuleType, architectures: ModuleType, name: str, channels: int
) -> None:
    """Transformer blocks: keys and values of cross attention read the prompt, which no norm of the block makes."""
    original = architectures.tiny_model(name)
    call = architectures.tiny_inputs(name)
    planted = copy.deepcopy(original)
    lines = outliers.plant(planted, channels=channels, seed=0)
    assert largest_difference(output(planted, call), output(original, call)) < TOLERANCE
    assert any(".ff.net.0.proj:" in line for line in lines) == (name != "ddpm")


def tiny_unet(**changes: object) -> nn.Module:
    """A UNet2DModel of two levels without attention, 4 channels and 8 channels."""
    from diffusers import UNet2DModel

    config: dict = {
        "sample_size": 8,
        "layers_per_block": 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "add_attention": False,
    }
    return UNet2DModel(**(config | changes)).eval()


def halves(outliers: ModuleType, unet: nn.Module) -> set[str]:
    return {f"{place.site}: {place.part}" for place in outliers.places(unet) if "half" in place.part}


def test_halves_of_concats_are_scaled_where_that_is_undone(outliers: ModuleType) -> None:
    """Resnets after resnets and upsamplers on the decoder's side, downsamplers on the encoder's: no other."""
    assert halves(outliers, tiny_unet()) == {
        "up_blocks.0.resnets.1.conv_shortcut: decoder half",
        "up_blocks.0.resnets.2.conv_shortcut: decoder half",
        "up_blocks.0.resnets.2.conv_shortcut: encoder half",
        "up_blocks.1.resnets.0.conv_shortcut: decoder half",
        "up_blocks.1.resnets.1.conv_shortcut: decoder half",
        "up_blocks.1.resnets.2.conv_shortcut: decoder half",
    }


def test_an_identity_behind_the_downsampler_leaves_the_encoder_half(outliers: ModuleType) -> None:
    """With as many channels on both levels, the resnet behind it hands its input on unscaled."""
    same = tiny_unet(block_out_channels=(8, 8))
    assert not any("encoder" in name for name in halves(outliers, same))


def test_channels_that_share_a_norm_group_with_the_other_half_are_left(outliers: ModuleType) -> None:
    unet = tiny_unet(norm_num_groups=1)
    assert halves(outliers, unet) == set()  # one group over both halves


def test_blocks_that_are_not_known_have_no_halves(outliers: ModuleType) -> None:
    unet = tiny_unet(
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
    )
    assert halves(outliers, unet) == set()


def test_the_script_writes_a_pipeline(
    outliers: ModuleType, pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object
) -> None:
    folder = tmp_path / "planted"
    arguments = ["outliers.py", "--model", str(pipeline_folder), "--output", str(folder), "--seed", "5"]
    monkeypatch.setattr(sys, "argv", arguments)
    outliers.main()
    original, planted = load_model(str(pipeline_folder)), load_model(str(folder))
    assert planted.pipeline is not None and type(planted.pipeline) is type(original.pipeline)
    call = unet_call(3, 16)
    assert largest_difference(output(planted.denoiser, call), output(original.denoiser, call)) < TOLERANCE
    weight = "mid_block.attentions.0.group_norm.weight"
    ratio = planted.denoiser.get_parameter(weight) / original.denoiser.get_parameter(weight)
    assert sorted(round(float(value), 3) for value in ratio)[-2:] == [1.0, 20.0]
