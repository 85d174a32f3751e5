"""Sampling: the pipeline's own scheduler around a denoiser that can be swapped and watched."""

from dmq_fx.sampling.hooks import watch_inputs, watch_outputs, watch_steps
from dmq_fx.sampling.prompts import read_prompts
from dmq_fx.sampling.sampler import Sampler, SamplerOptions

__all__ = ["Sampler", "SamplerOptions", "read_prompts", "watch_inputs", "watch_outputs", "watch_steps"]
