"""What tests share: the catalog of architectures, a small trained-like model, and an artifact of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import catalog
import pytest
import torch

from dmq_fx.calibration.store import CalibrationCache


@pytest.fixture(scope="session")
def architectures() -> ModuleType:
    """`tests/architectures/catalog.py`: tiny models of every family, published configs."""
    return catalog


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CalibrationCache:
    """A calibration cache that is not the user's."""
    return CalibrationCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """No test reads or writes the user's folders."""
    patch = pytest.MonkeyPatch()
    for kind in ("CACHE", "CONFIG", "DATA"):
        patch.setenv(f"XDG_{kind}_HOME", str(tmp_path_factory.mktemp(f"home-{kind.lower()}")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory, architectures: ModuleType) -> Path:
    """A `DDIMPipeline` folder around a tiny UNet2DModel with random weights, 16x16 RGB."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    architectures._randomise(unet, 0)
    folder = tmp_path_factory.mktemp("model") / "tiny-ddpm"
    DDIMPipeline(unet=unet.eval(), scheduler=DDIMScheduler(clip_sample=True)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of CLIP's kind that knows letters and no words, of at most 77 tokens."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{letter}</w>" for letter in alphabet)]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


@pytest.fixture(scope="session")
def text_to_image_folder(tmp_path_factory: pytest.TempPathFactory, architectures: ModuleType, letters: Any) -> Path:
    """A `StableDiffusionPipeline` folder with random weights: latents of 8x8, images of 16x16."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(**blocks, block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, sample_size=16)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPTextConfig(
        **tower, **tokens, vocab_size=len(letters), max_position_embeddings=letters.model_max_length
    )
    text_encoder = CLIPTextModel(config)
    for seed, part in enumerate((unet, vae, text_encoder)):
        architectures._randomise(part.eval(), seed)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=letters,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny-text-to-image"
    pipeline.save_pretrained(folder)
    return folder


FAST = ("calibration.samples=8", "calibration.batch=4", "calibration.steps=4")
"""Overrides that make a compile of a tiny model quick."""


@pytest.fixture(scope="session")
def fast() -> tuple[str, ...]:
    return FAST


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path, cache: CalibrationCache) -> Path:
    """`ptq/w8a8` of the tiny pipeline."""
    import dmq_fx

    path = tmp_path_factory.mktemp("artifact") / "w8a8"
    dmq_fx.compile("ptq/w8a8", model=str(pipeline_folder), output=path, overrides=FAST, cache=cache)
    return path


@pytest.fixture(scope="session")
def text_to_image_artifact(
    tmp_path_factory: pytest.TempPathFactory, text_to_image_folder: Path, cache: CalibrationCache
) -> Path:
    """`ptq/w8a8` of the tiny text-to-image pipeline, calibrated on two prompts."""
    import dmq_fx

    path = tmp_path_factory.mktemp("artifact") / "text-w8a8"
    few = ("calibration.samples=2", "calibration.batch=2", "calibration.steps=2", "calibration.prompts=[a cat, a dog]")
    dmq_fx.compile("ptq/w8a8", model=str(text_to_image_folder), output=path, overrides=few, cache=cache)
    return path


@pytest.fixture(autouse=True)
def _threads() -> None:
    """Results must not depend on how many workers run beside."""
    torch.set_num_threads(1)
