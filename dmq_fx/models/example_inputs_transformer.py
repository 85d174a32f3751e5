"""Example inputs of image transformers, at the token counts that their pipelines use by default."""

from __future__ import annotations

from typing import Any

import torch

from dmq_fx.models.example_inputs import EXAMPLE_INPUTS, InputMaker, Inputs

_PIXART_ALPHA_TOKENS, _PIXART_SIGMA_TOKENS = 120, 300
_SD3_TOKENS = 77 + 256
_FLUX_TOKENS, _FLUX_LATENTS = 512, 128
_SANA_TOKENS = 300
_SIZE_CONDITIONS = 6


@EXAMPLE_INPUTS.register("DiTTransformer2DModel")
def dit(config: Any, make: InputMaker) -> Inputs:
    """DiTPipeline: ImageNet classes, of which the last index stands for none."""
    return {
        "hidden_states": make.noise(config.in_channels, *make.latent_size(config.sample_size)),
        "timestep": make.timestep(),
        "class_labels": make.integers(high=config.num_embeds_ada_norm),
    }


@EXAMPLE_INPUTS.register("PixArtTransformer2DModel")
def pixart(config: Any, make: InputMaker) -> Inputs:
    """PixArt alpha, with resolution and aspect ratio at 1024 pixels, and sigma, which has neither and more tokens."""
    sized = config.use_additional_conditions
    sized = config.sample_size == 128 if sized is None else sized
    sigma = config.use_additional_conditions is False  # sigma's published configs say so, alpha's say nothing
    tokens = _PIXART_SIGMA_TOKENS if sigma else _PIXART_ALPHA_TOKENS
    inputs: Inputs = {
        "hidden_states": make.noise(config.in_channels, *make.latent_size(config.sample_size)),
        "encoder_hidden_states": make.noise(tokens, config.caption_channels),
        "timestep": make.timestep(),
        "encoder_attention_mask": make.ones(tokens, dtype=torch.int64),
    }
    if sized:
        inputs["added_cond_kwargs"] = {"resolution": make.noise(2).abs(), "aspect_ratio": make.noise(1).abs()}
    return inputs


@EXAMPLE_INPUTS.register("SD3Transformer2DModel")
def sd3(config: Any, make: InputMaker) -> Inputs:
    """Stable Diffusion 3: CLIP and T5 tokens in one sequence, and a pooled vector."""
    return {
        "hidden_states": make.noise(config.in_channels, *make.latent_size(config.sample_size)),
        "encoder_hidden_states": make.noise(_SD3_TOKENS, config.joint_attention_dim),
        "pooled_projections": make.noise(config.pooled_projection_dim),
        "timestep": make.timestep(dtype=torch.float32),
    }


@EXAMPLE_INPUTS.register("FluxTransformer2DModel")
def flux(config: Any, make: InputMaker) -> Inputs:
    """Flux: latents packed two by two into tokens, positions without a batch, timestep in 0 .. 1."""
    height, width = (length // 2 for length in make.latent_size(None, default=_FLUX_LATENTS))
    rows = torch.arange(height, device=make.device, dtype=make.dtype)[:, None].expand(height, width)
    columns = torch.arange(width, device=make.device, dtype=make.dtype)[None].expand(height, width)
    positions = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(height * width, 3)
    inputs: Inputs = {
        "hidden_states": make.noise(height * width, config.in_channels),
        "encoder_hidden_states": make.noise(_FLUX_TOKENS, config.joint_attention_dim),
        "pooled_projections": make.noise(config.pooled_projection_dim),
        "timestep": make.timestep(dtype=make.dtype) / 1000,
        "img_ids": positions,
        "txt_ids": torch.zeros(_FLUX_TOKENS, 3, device=make.device, dtype=make.dtype),
    }
    if config.guidance_embeds:
        inputs["guidance"] = make.ones(dtype=torch.float32) * 3.5
    return inputs


@EXAMPLE_INPUTS.register("SanaTransformer2DModel")
def sana(config: Any, make: InputMaker) -> Inputs:
    """Sana: Gemma tokens with a mask."""
    inputs: Inputs = {
        "hidden_states": make.noise(config.in_channels, *make.latent_size(config.sample_size)),
        "encoder_hidden_states": make.noise(_SANA_TOKENS, config.caption_channels),
        "timestep": make.timestep(dtype=torch.float32),
        "encoder_attention_mask": make.ones(_SANA_TOKENS, dtype=torch.int64),
    }
    if config.guidance_embeds:
        inputs["guidance"] = make.ones() * config.guidance_embeds_scale
    return inputs


@EXAMPLE_INPUTS.register("HunyuanDiT2DModel")
def hunyuan_dit(config: Any, make: InputMaker) -> Inputs:
    """HunyuanDiT: CLIP and T5 tokens with masks, image sizes, a style, and rotary tables without a batch."""
    height, width = make.latent_size(config.sample_size)
    positions = (height // config.patch_size) * (width // config.patch_size)
    angles = make.unbatched(positions, config.attention_head_dim)
    return {
        "hidden_states": make.noise(config.in_channels, height, width),
        "timestep": make.timestep(dtype=make.dtype),
        "encoder_hidden_states": make.noise(config.text_len, config.cross_attention_dim),
        "text_embedding_mask": make.ones(config.text_len, dtype=torch.int64),
        "encoder_hidden_states_t5": make.noise(config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": make.ones(config.text_len_t5, dtype=torch.int64),
        "image_meta_size": make.noise(_SIZE_CONDITIONS).abs(),
        "style": make.integers(high=1),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }
