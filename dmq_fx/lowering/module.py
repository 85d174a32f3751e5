"""A lowered graph as a module: one timestep a call, what depends on the timestep alone kept for when it comes back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.errors import BackendError
from dmq_fx.tracing import TracedModel

REMEMBERED = 1024
"""Timesteps whose part of the graph is kept: all of a DDPM's."""

OfTimestep = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A time part: from the timestep, [1], to floats and integers."""


class LoweredModule(nn.Module):
    """Takes the graph's flat inputs and returns its outputs, on the CPU.

    run: the body of the graph. time: its time part, if it has one. known: what that gives for some timesteps.
    Samples of several timesteps are computed timestep by timestep, each with its own ranges.
    """

    def __init__(
        self,
        traced: TracedModel,
        run: Callable[..., Any],
        time: OfTimestep | None,
        known: Mapping[float, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.run = run
        self.time = time
        self._known = OrderedDict(known or {})
        self._batched = tuple(entry.batched for entry in traced.inputs)
        place = [i for i, e in enumerate(traced.inputs) if e.name == traced.timestep and len(e.dims) == 1]
        self._timestep = place[0] if place else None
        self._dtypes = tuple(entry.dtype for entry in traced.inputs)

    def forward(self, *inputs: Tensor) -> Any:
        if self._timestep is None:
            return self._call(inputs)
        timesteps = inputs[self._timestep]
        if bool((timesteps == timesteps[:1]).all()):
            return self._call(inputs)
        output: list[Tensor] = []
        for value in timesteps.unique():
            rows = (timesteps == value).nonzero()[:, 0]
            found = self._call(tuple(x[rows] if of else x for x, of in zip(inputs, self._batched, strict=True)))
            output = output or [part.new_empty(len(timesteps), *part.shape[1:]) for part in found]
            for whole, part in zip(output, found, strict=True):
                whole[rows] = part
        return tuple(output)

    def _call(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.time is not None:
            assert self._timestep is not None
            inputs = (*inputs, *self.of_timestep(inputs[self._timestep][:1]))
            # the body is compiled for the traced type, and has no use for the rest of a timestep
            inputs = (
                tuple(x.to(dtype) for x, dtype in zip(inputs, self._dtypes, strict=False)) + inputs[len(self._dtypes) :]
            )
        with torch.no_grad():
            found = self.run(*(x.contiguous() for x in inputs))
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)

    def of_timestep(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """What the time part gives for a timestep, [1]."""
        key = float(timestep)
        if key not in self._known:
            assert self.time is not None
            with torch.no_grad():
                found = self.time(timestep)
            if found[0].dtype != torch.float32 or found[1].dtype != torch.int64:
                raise BackendError(
                    f"the timestep {key:g} is a fraction, and this model's graph computes with whole ones",
                    hint="--backend fake_quant takes it",
                )
            self._known[key] = found
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LoweredModule:
        if fn(torch.empty(0)).device.type != "cpu":
            raise BackendError("this lowering is for the CPU", hint="load the artifact with another --backend")
        return self
