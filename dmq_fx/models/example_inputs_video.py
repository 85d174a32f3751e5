"""Example inputs of video transformers, at their pipelines' default length and size."""

from __future__ import annotations

from typing import Any

from dmq_fx.models.example_inputs import EXAMPLE_INPUTS, InputMaker, Inputs

_WAN_FRAMES, _WAN_SIZE, _WAN_TOKENS = 21, (60, 104), 512


@EXAMPLE_INPUTS.register("CogVideoXTransformer3DModel")
def cogvideox(config: Any, make: InputMaker) -> Inputs:
    """CogVideoX: `[batch, frames, channels, height, width]`, T5 tokens, and rotary tables where the config has them."""
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    frames += -frames % (config.patch_size_t or 1)
    height, width = make.latent_size((config.sample_height, config.sample_width))
    inputs: Inputs = {
        "hidden_states": make.noise(frames, config.in_channels, height, width),
        "encoder_hidden_states": make.noise(config.max_text_seq_length, config.text_embed_dim),
        "timestep": make.timestep(),
    }
    if config.use_rotary_positional_embeddings:
        patches = (height // config.patch_size) * (width // config.patch_size) * (frames // (config.patch_size_t or 1))
        angles = make.unbatched(patches, config.attention_head_dim)
        inputs["image_rotary_emb"] = (angles.cos(), angles.sin())
    if config.ofs_embed_dim is not None:
        inputs["ofs"] = make.unbatched(1) * 0 + 2
    return inputs


@EXAMPLE_INPUTS.register("WanTransformer3DModel")
def wan(config: Any, make: InputMaker) -> Inputs:
    """Wan 2.1 text to video: 81 frames of 480 by 832 pixels as latents `[batch, channels, frames, height, width]`."""
    return {
        "hidden_states": make.noise(config.in_channels, _WAN_FRAMES, *make.latent_size(_WAN_SIZE)),
        "timestep": make.timestep(),
        "encoder_hidden_states": make.noise(_WAN_TOKENS, config.text_dim),
    }
