"""Architectures for tests: published configs in full, and a tiny model of each family with random weights.

Tests import it as `catalog` (`pythonpath` in pyproject.toml).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmq_fx.models import build_denoiser, example_inputs, load_denoiser_on_meta
from dmq_fx.roles import find_sites
from dmq_fx.sites import Site
from dmq_fx.tracing import TracedModel, trace

CONFIGS = Path(__file__).parent / "configs"

FULL: dict[str, Path] = {path.stem: path for path in sorted(CONFIGS.glob("*.json"))}
"""Published configs, by name."""

_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}
_TEXT_UNET: dict[str, Any] = {
    **_UNET,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
_PIXART: dict[str, Any] = {
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "cross_attention_dim": 24,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 12,
}

_TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": (
        "UNet2DModel",
        {
            **_UNET,
            "block_out_channels": (8, 16, 24),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
        },
    ),
    "ddpm-class": (
        "UNet2DModel",
        {
            **_UNET,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
            "num_class_embeds": 10,
            "resnet_time_scale_shift": "scale_shift",
        },
    ),
    "sd": ("UNet2DConditionModel", _TEXT_UNET),
    "sdxl": (
        "UNet2DConditionModel",
        {
            **_TEXT_UNET,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 10,
        },
    ),
    "dit": (
        "DiTTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 10,
        },
    ),
    "pixart-alpha": ("PixArtTransformer2DModel", {**_PIXART, "use_additional_conditions": True}),
    "pixart-sigma": (
        "PixArtTransformer2DModel",
        {**_PIXART, "interpolation_scale": 2, "use_additional_conditions": False},
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 10,
            "out_channels": 4,
            "pos_embed_max_size": 8,
        },
    ),
    "flux": (
        "FluxTransformer2DModel",
        {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 10,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
    "sana": (
        "SanaTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 12,
            "sample_size": 8,
        },
    ),
    "hunyuan-dit": (
        "HunyuanDiT2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "hidden_size": 16,
            "num_layers": 4,
            "cross_attention_dim": 12,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 12,
            "text_len": 5,
            "text_len_t5": 7,
        },
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 12,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 6,
        },
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
    ),
}

TINY: tuple[str, ...] = tuple(_TINY)
"""Names of the tiny models, one or two a family."""

_SIZE: dict[str, tuple[int, int]] = {"flux": (8, 8), "wan": (8, 8)}
"""Families whose config does not say the size of the latents."""


def tiny_model(name: str, *, device: str = "cpu", seed: int = 0) -> nn.Module:
    """A tiny denoiser in eval mode, with seeded random weights (none of them zero) on a real device."""
    class_name, config = _TINY[name]
    denoiser = build_denoiser(class_name, config, device=device)
    if device != "meta":
        _randomise(denoiser, seed)
    return denoiser


def tiny_inputs(name: str, batch: int = 2, *, device: str = "cpu") -> dict[str, Any]:
    """Keyword arguments for a tiny model's forward."""
    return example_inputs(tiny_model(name, device="meta"), batch, device=device, size=_SIZE.get(name))


@cache
def traced_tiny(name: str, device: str = "cpu") -> TracedModel:
    """The trace of a tiny model, made once in a test session: do not change its graph."""
    return trace(tiny_model(name, device=device), tiny_inputs(name, device=device))


@cache
def tiny_sites(name: str) -> tuple[Site, ...]:
    """The sites of a tiny model."""
    return find_sites(traced_tiny(name))


@cache
def full_sites(name: str) -> tuple[Site, ...]:
    """The sites of a published architecture, traced on the meta device."""
    return find_sites(trace(load_denoiser_on_meta(f"config:{FULL[name]}").denoiser))


def _randomise(denoiser: nn.Module, seed: int) -> None:
    """Weights of a size that keeps activations near one; norms near the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in denoiser.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
        if parameter.dim() > 1:
            value = noise * fan_in**-0.5
        elif name.endswith("weight"):
            value = 1 + 0.1 * noise
        else:
            value = 0.1 * noise
        parameter.data.copy_(value)
