"""Example inputs of UNets."""

from __future__ import annotations

from typing import Any

from dmq_fx.errors import TraceError
from dmq_fx.models.example_inputs import EXAMPLE_INPUTS, InputMaker, Inputs

_CLIP_TOKENS = 77
_SDXL_TIME_IDS = 6


@EXAMPLE_INPUTS.register("UNet2DModel")
def unet_2d(config: Any, make: InputMaker) -> Inputs:
    """DDPM, DDIM and LDM pipelines: `sample`, `timestep`, and `class_labels` for a class-conditional model."""
    inputs: Inputs = {
        "sample": make.noise(config.in_channels, *make.latent_size(config.sample_size)),
        "timestep": make.timestep(),
    }
    if config.num_class_embeds is not None:
        inputs["class_labels"] = make.integers(high=config.num_class_embeds)
    elif config.class_embed_type == "timestep":
        inputs["class_labels"] = make.timestep()
    elif config.class_embed_type == "identity":
        inputs["class_labels"] = make.noise(config.time_embedding_dim or config.block_out_channels[0] * 4)
    return inputs


@EXAMPLE_INPUTS.register("UNet2DConditionModel")
def unet_2d_condition(config: Any, make: InputMaker) -> Inputs:
    """Stable Diffusion pipelines, SDXL's with `added_cond_kwargs`, and LDM's with a context."""
    width = config.encoder_hid_dim or config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    inputs: Inputs = {
        "sample": make.noise(config.in_channels, *make.latent_size(config.sample_size)),
        "timestep": make.timestep(),
        "encoder_hidden_states": make.noise(_CLIP_TOKENS, width),
    }
    if config.num_class_embeds is not None:
        inputs["class_labels"] = make.integers(high=config.num_class_embeds)
    elif config.class_embed_type in ("projection", "simple_projection"):
        inputs["class_labels"] = make.noise(config.projection_class_embeddings_input_dim)
    elif config.class_embed_type == "timestep":
        inputs["class_labels"] = make.timestep()
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = make.noise(config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - _SDXL_TIME_IDS * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": make.noise(pooled), "time_ids": make.noise(_SDXL_TIME_IDS).abs()}
    elif config.addition_embed_type not in (None, "text"):
        raise TraceError(
            f"the inputs for addition_embed_type={config.addition_embed_type!r} are not known",
            where="UNet2DConditionModel",
            hint="pass inputs= (keyword arguments of its forward) in Python",
        )
    return inputs
