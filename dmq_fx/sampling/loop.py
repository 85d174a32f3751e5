"""A sampler for a denoiser that comes without a pipeline: random conditioning, the right noise schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.errors import CalibrationError
from dmq_fx.models import example_inputs
from dmq_fx.sampling.schedulers import default_scheduler

SAMPLE_NAMES = ("sample", "hidden_states")
UNIT_TIMESTEP = ("FluxTransformer2DModel",)
"""Denoisers whose pipelines divide the timestep by 1,000."""


class DenoiserLoop:
    """The part of a diffusers pipeline that this package uses, around a bare denoiser.

    The conditioning inputs are those of `example_inputs` (random numbers of the right shape), the same for
    every call, so that a model can be calibrated and compared without its text encoders.
    """

    def __init__(self, denoiser: nn.Module, class_name: str) -> None:
        self.denoiser = denoiser
        self.class_name = class_name
        self.scheduler: Any = default_scheduler(class_name)

    def __call__(self, batch_size: int, num_inference_steps: int, generator: Sequence[torch.Generator]) -> Tensor:
        """Final latents, [batch, ...]."""
        inputs = example_inputs(self.denoiser, batch=batch_size, device=self._device())
        name = next((name for name in SAMPLE_NAMES if name in inputs), None)
        if name is None:
            raise CalibrationError(f"{self.class_name} has no input named {' or '.join(SAMPLE_NAMES)}")
        shape = inputs[name].shape[1:]
        x = torch.stack([torch.randn(shape, generator=one) for one in generator])
        x = x.to(inputs[name])
        self.scheduler.set_timesteps(num_inference_steps)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for t in self.scheduler.timesteps:
            model_t = t / 1000 if self.class_name in UNIT_TIMESTEP else t
            call = {**inputs, name: x, "timestep": model_t.expand(batch_size).to(x.device)}
            output = self.denoiser(**call, return_dict=False)[0]
            if output.shape[1] == 2 * x.shape[1]:  # noise and variance
                output = output.chunk(2, dim=1)[0]
            x = self.scheduler.step(output, t, x, return_dict=False)[0]
        return x

    def _device(self) -> torch.device:
        return next(self.denoiser.parameters()).device
