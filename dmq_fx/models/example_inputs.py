"""Example inputs of a denoiser, made from its config: what its diffusers pipeline passes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dmq_fx.errors import ModelError, TraceError
from dmq_fx.registry import Registry

Inputs = dict[str, Any]


@dataclass(frozen=True)
class InputMaker:
    """Makes the tensors of one batch: deterministic on a real device, without values on meta.

    size: height and width of the latents, where they are not to be those of the config.
    """

    batch: int
    device: torch.device
    dtype: torch.dtype
    size: tuple[int, int] | None = None

    def latent_size(self, sample_size: int | Sequence[int] | None, *, default: int = 64) -> tuple[int, int]:
        """Height and width: those asked for, or of a config's `sample_size` (a number or a pair), or the default."""
        if self.size is not None:
            return self.size
        if sample_size is None:
            return default, default
        if isinstance(sample_size, int):
            return sample_size, sample_size
        return int(sample_size[0]), int(sample_size[1])

    def noise(self, *shape: int) -> torch.Tensor:
        """A float tensor `[batch, *shape]` with values of a standard normal distribution."""
        return self._random(self.batch, *shape)

    def unbatched(self, *shape: int) -> torch.Tensor:
        """A float tensor without a batch dimension."""
        return self._random(*shape)

    def integers(self, *shape: int, high: int) -> torch.Tensor:
        """An int64 tensor `[batch, *shape]` with values in `0 .. high - 1`."""
        count = max(1, high)
        size = (self.batch, *shape)
        if self.device.type == "meta":
            return torch.empty(size, dtype=torch.int64, device=self.device)
        flat = torch.arange(torch.Size(size).numel(), device=self.device) * 7919 + 1
        return (flat % count).reshape(size)

    def ones(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Ones `[batch, *shape]`, such as a mask that keeps everything."""
        return torch.ones(self.batch, *shape, dtype=dtype or self.dtype, device=self.device)

    def timestep(self, *, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Timesteps `[batch]` in 0 .. 999."""
        return (self.integers(high=1000) if dtype == torch.int64 else self._random(self.batch).abs() * 500).to(dtype)

    def _random(self, *size: int) -> torch.Tensor:
        if self.device.type == "meta":
            return torch.empty(size, dtype=self.dtype, device=self.device)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(size, generator=generator).to(device=self.device, dtype=self.dtype)


InputFunction = Callable[[Any, InputMaker], Inputs]

EXAMPLE_INPUTS: Registry[InputFunction] = Registry("example inputs")
"""Functions from a denoiser's config to keyword arguments of its forward, by the name of its class."""


def example_inputs(
    denoiser: nn.Module,
    batch: int = 2,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    size: tuple[int, int] | None = None,
) -> Inputs:
    """Keyword arguments for the denoiser's forward, with a timestep of shape `[batch]`.

    device, dtype: those of the denoiser's parameters if not given.
    size: height and width of the latents (or pixels); by default what the config says the model was trained on.
    Raises TraceError for a class that dmq does not know, ModelError for a configuration that makes no inputs.
    """
    from dmq_fx.models import example_inputs_transformer, example_inputs_unet, example_inputs_video  # noqa: F401

    name = type(denoiser).__name__
    known = EXAMPLE_INPUTS.names()
    if name not in known:
        raise TraceError(
            f"the inputs of {name} are not known",
            where=f"{type(denoiser).__module__}.{name}",
            hint=f"pass inputs= (keyword arguments of its forward) in Python; known: {', '.join(known)}",
        )
    parameter = next(denoiser.parameters())
    maker = InputMaker(batch, torch.device(device or parameter.device), dtype or parameter.dtype, size)
    try:
        return EXAMPLE_INPUTS.get(name)(denoiser.config, maker)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"no inputs of {name} follow from its configuration: {error}",
            hint="check sample_size and the other sizes in its config.json",
        ) from error
