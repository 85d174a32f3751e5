"""The size of a pipeline's images is what its configuration says, and what it gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, UNet2DModel

from dmq_fx.models import LoadedModel, load_model
from dmq_fx.sampling import Sampler, SamplerOptions
from dmq_fx.sampling.image_size import image_size


def unet(sample_size: int | list[int]) -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(sample_size, 3, 3, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4, **blocks)


def class_conditional() -> DiTPipeline:
    """It says no scale: that of its decoder with three blocks is 4."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 4, "patch_size": 2}
    denoiser = DiTTransformer2DModel(
        **sizes, in_channels=4, out_channels=8, norm_num_groups=4, num_embeds_ada_norm=1000
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(**blocks, block_out_channels=(4, 4, 4), latent_channels=4, norm_num_groups=2)
    return DiTPipeline(denoiser, vae, DDIMScheduler())


PIPELINES: dict[str, tuple[Any, tuple[int, int]]] = {
    "pixels": (lambda: DDIMPipeline(unet(8), DDIMScheduler()), (8, 8)),
    "pixels, not square": (lambda: DDIMPipeline(unet([8, 12]), DDIMScheduler()), (8, 12)),
    "latents of a class": (class_conditional, (16, 16)),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_size_is_that_of_the_images(name: str) -> None:
    build, expected = PIPELINES[name]
    loaded = load_model(build())
    images = next(Sampler(loaded, SamplerOptions(steps=1, batch=1)).run(1))
    assert image_size(loaded) == expected == tuple(images.shape[2:])


def test_size_of_latents_of_text(text_to_image_folder: Path) -> None:
    loaded = load_model(str(text_to_image_folder))
    images = next(Sampler(loaded, SamplerOptions(steps=1, batch=1, prompts=("a",))).run(1))
    assert image_size(loaded) == (16, 16) == tuple(images.shape[2:])


class Named:
    """A pipeline of latents whose call says a size, as Sana's and Kandinsky's do."""

    components: ClassVar[dict[str, Any]] = {"transformer": None, "vae": SimpleNamespace(config=SimpleNamespace())}
    vae_scale_factor = 8

    def __call__(self, height: int = 480, width: int = 832) -> None: ...


class Unnamed(Named):
    def __call__(self, height: int | None = None, width: int | None = None) -> None: ...


class Undecoded(Unnamed):
    components: ClassVar[dict[str, Any]] = {"transformer": None, "text_encoder": None}


@pytest.mark.parametrize(
    ("pipeline", "config", "expected"),
    [
        (Named(), {"sample_size": 32}, (480, 832)),
        (Unnamed(), {"sample_size": 32}, (256, 256)),
        (Unnamed(), {"sample_size": [32, 48]}, (256, 384)),
        (Unnamed(), {"sample_size": None}, None),
        (Unnamed(), {"sample_size": [4, 32, 48]}, None),
        (Unnamed(), {}, None),
        (Undecoded(), {"sample_size": 32}, None),
        (None, {"sample_size": 32}, None),
    ],
)
def test_size_by_what_is_said(pipeline: Any, config: dict[str, Any], expected: tuple[int, int] | None) -> None:
    assert image_size(LoadedModel(torch.nn.Module(), "transformer", pipeline, "here", config, "Class")) == expected
