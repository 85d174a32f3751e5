"""A sampler for a denoiser that comes without a pipeline: random conditioning, the right noise schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.errors import CalibrationError
from dmq_fx.models import example_inputs
from dmq_fx.sampling.schedulers import default_scheduler
from dmq_fx.tracing import TIMESTEP_NAMES, repeat_inputs

SAMPLE_NAMES = ("sample", "hidden_states")
UNIT_TIMESTEP = ("FluxTransformer2DModel",)
"""Denoisers whose pipelines divide the timestep by 1,000."""


class DenoiserLoop:
    """The part of a diffusers pipeline that this package uses, around a bare denoiser and any scheduler.

    The conditioning is that of `inputs` (default: `example_inputs`, random numbers of the right shape), the same
    for every sample, so that a model can be calibrated and compared without its text encoders.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        class_name: str,
        inputs: Mapping[str, Any] | None = None,
        scheduler: Any = None,
    ) -> None:
        self.denoiser = denoiser
        self.class_name = class_name
        self.inputs = example_inputs(denoiser) if inputs is None else inputs
        self.scheduler: Any = scheduler or default_scheduler(class_name)

    def __call__(self, batch_size: int, num_inference_steps: int, generator: Sequence[torch.Generator]) -> Tensor:
        """Final latents, [batch, ...]; for a model of pixels these are images in -1..1."""
        inputs = repeat_inputs(self.inputs, batch_size)
        name = next((name for name in SAMPLE_NAMES if name in inputs), None)
        if name is None:
            raise CalibrationError(f"{self.class_name} has no input named {' or '.join(SAMPLE_NAMES)}")
        shape = inputs[name].shape[1:]
        x = torch.stack([torch.randn(shape, generator=one) for one in generator])
        x = x.to(inputs[name])
        self.scheduler.set_timesteps(num_inference_steps)
        noise = {"generator": list(generator)} if "generator" in signature(self.scheduler.step).parameters else {}
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for t in self.scheduler.timesteps:
            model_t = t / 1000 if self.class_name in UNIT_TIMESTEP else t
            timestep = {key: _like(model_t, inputs[key], batch_size) for key in TIMESTEP_NAMES if key in inputs}
            scaled = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            call = {**inputs, name: scaled, **timestep}
            output = self.denoiser(**call, return_dict=False)[0]
            if output.shape[1] == 2 * x.shape[1]:  # noise and variance
                output = output.chunk(2, dim=1)[0]
            x = self.scheduler.step(output, t, x, return_dict=False, **noise)[0]
        return x


def _like(timestep: Tensor, template: Tensor, batch: int) -> Tensor:
    """The scheduler's timestep for a whole batch; a fraction is never cut to an integer."""
    dtype = template.dtype if template.is_floating_point() else timestep.dtype
    return timestep.expand(batch).to(template.device, dtype)
