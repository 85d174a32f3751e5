"""Sampling: the pipeline's own scheduler around a denoiser that can be swapped and watched."""

from dmq_fx.sampling.conditioning import check_conditioning
from dmq_fx.sampling.hooks import answer_calls, watch_inputs, watch_outputs, watch_predictions, watch_steps
from dmq_fx.sampling.prompts import read_prompts
from dmq_fx.sampling.sampler import Sampler, SamplerOptions, require_prompts

__all__ = [
    "Sampler",
    "SamplerOptions",
    "answer_calls",
    "check_conditioning",
    "read_prompts",
    "require_prompts",
    "watch_inputs",
    "watch_outputs",
    "watch_predictions",
    "watch_steps",
]
