"""A lowered graph as a module: one timestep a call, what depends on the timestep alone kept for when it comes back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
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
    reads_timestep: the body computes with the timestep itself, too.
    Samples of several timesteps are computed timestep by timestep, each with its own ranges. Raises BackendError for
    no samples, and for inputs that the graph's types cannot hold.
    """

    def __init__(
        self,
        traced: TracedModel,
        run: Callable[..., Any],
        time: OfTimestep | None,
        known: Mapping[float, tuple[Tensor, Tensor]] | None = None,
        *,
        reads_timestep: bool = True,
    ) -> None:
        super().__init__()
        self.run = run
        self.time = time
        self._known = OrderedDict(known or {})
        self._batched = tuple(entry.batched for entry in traced.inputs)
        place = [i for i, e in enumerate(traced.inputs) if e.name == traced.timestep and len(e.dims) == 1]
        self._timestep = place[0] if place else None
        self._types = tuple((entry.name, entry.dtype) for entry in traced.inputs)
        self._unread = None if reads_timestep else self._timestep

    def forward(self, *inputs: Tensor) -> Any:
        if any(not len(x) for x, batched in zip(inputs, self._batched, strict=True) if batched):
            raise BackendError("there are no samples in this batch")
        if self._timestep is None:
            return self._call(inputs)
        timesteps = inputs[self._timestep]
        if not bool(timesteps.isfinite().all()):
            raise BackendError(f"the timestep is {timesteps.flatten().tolist()}, not a finite number")
        if bool((timesteps == timesteps[:1]).all()):
            return self._call(inputs)
        return self._timestep_by_timestep(inputs, timesteps)

    def _timestep_by_timestep(self, inputs: tuple[Tensor, ...], timesteps: Tensor) -> tuple[Tensor, ...]:
        _require_rows([x for x, of in zip(inputs, self._batched, strict=True) if of], len(timesteps))
        output: list[Tensor] = []
        for value in timesteps.unique():
            rows = (timesteps == value).nonzero()[:, 0]
            found = self._call(tuple(x[rows] if of else x for x, of in zip(inputs, self._batched, strict=True)))
            _require_rows(found, len(rows))
            output = output or [part.new_empty(len(timesteps), *part.shape[1:]) for part in found]
            for whole, part in zip(output, found, strict=True):
                whole[rows] = part
        return tuple(output)

    def _call(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = self._typed(inputs)
        if self.time is not None:
            assert self._timestep is not None
            given += self.of_timestep(inputs[self._timestep][:1])
        with torch.no_grad():
            found = self.run(*(x.contiguous() for x in given))
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)

    def _typed(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Inputs in the types of the trace: compiled code reads their memory as that, whatever it holds."""
        found = tuple(x.to(dtype) for x, (_, dtype) in zip(inputs, self._types, strict=True))
        for place, (before, after) in enumerate(zip(inputs, found, strict=True)):
            whole = before.is_floating_point() and not after.is_floating_point()
            if whole and place != self._unread and not torch.equal(before, after.to(before.dtype)):
                name, dtype = self._types[place]
                raise _not_held(name, float(before[before != after.to(before.dtype)][0]), dtype)
        return found

    def of_timestep(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """What the time part gives for a timestep, [1]."""
        key = float(timestep)
        if key not in self._known:
            assert self.time is not None and self._timestep is not None
            traced = self._types[self._timestep][1]
            with torch.no_grad():
                found = self.time(timestep.to(traced) if key.is_integer() else timestep)
            if found[0].dtype != torch.float32 or found[1].dtype != torch.int64:
                raise _not_held("timestep", key, traced)
            self._known[key] = found
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LoweredModule:
        if fn(torch.empty(0)).device.type != "cpu":
            raise BackendError("this lowering is for the CPU", hint="load the artifact with another --backend")
        return self


def _require_rows(tensors: Iterable[Tensor], count: int) -> None:
    """Raise BackendError unless every tensor has a row for each of `count` samples."""
    if any(len(x) != count for x in tensors):
        raise BackendError(
            "this model has several rows for a sample, and its samples have several timesteps",
            hint="call it for the samples of one timestep at a time, or use --backend fake_quant",
        )


def _not_held(name: str, value: float, dtype: torch.dtype) -> BackendError:
    what = "a fraction" if not value.is_integer() else f"no {str(dtype).removeprefix('torch.')}"
    return BackendError(
        f"the {name} {value:g} is {what}, and this model's graph computes with whole ones",
        hint="--backend fake_quant takes it",
    )
