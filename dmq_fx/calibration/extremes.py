"""The smallest and largest value of every channel at every timestep, of many activations in one streaming pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.store import CalibrationSet
from dmq_fx.calibration.streaming import stream_sites
from dmq_fx.errors import CalibrationError
from dmq_fx.planning import PlannedSite
from dmq_fx.program.program import Activation, Program
from dmq_fx.program.scaling import channel_axis


@dataclass(frozen=True)
class Extremes:
    """low, high: float32 [slots, channels]; one slot where an activation has one range for all timesteps."""

    low: Tensor
    high: Tensor

    @property
    def largest(self) -> Tensor:
        """max |x| of every channel over all timesteps, [channels]."""
        return torch.maximum(-self.low, self.high).amax(0).clamp_min(0)


def channel_extremes(
    program: Program,
    activations: Sequence[Activation],
    inputs: CalibrationSet,
    *,
    device: torch.device,
    limit: int | None,
    progress: Callable[[int], None],
) -> dict[int, Extremes]:
    """Extremes of the full-precision inputs by activation index; each must have a channel axis.

    Raises CalibrationError for a value that is not finite.
    """
    by_site = {activation.sites[0]: activation for activation in activations}
    low: dict[int, Tensor] = {}
    high: dict[int, Tensor] = {}

    def collect(planned: PlannedSite, args: tuple[Any, ...], output: Tensor, slot: Tensor | None) -> None:
        activation = by_site.get(planned.name)
        axis = channel_axis(program, activation) if activation is not None else None
        if activation is None or axis is None:
            return
        x = args[0].float()
        rest = [dim for dim in range(1, x.dim()) if dim != axis]
        smallest, largest = (x.amin(rest), x.amax(rest)) if rest else (x, x)
        if not bool(torch.isfinite(smallest + largest).all()):
            raise CalibrationError("the input of this site is not finite", where=planned.name)
        slots = len(program.timesteps) if activation.spec.per_timestep else 1
        rows = slot.repeat_interleave(activation.batch_multiple) if slots > 1 and slot is not None else None
        if activation.index not in low:
            low[activation.index] = torch.full((slots, x.shape[axis]), torch.inf, device=x.device)
            high[activation.index] = torch.full_like(low[activation.index], -torch.inf)
        rows = torch.zeros(len(x), dtype=torch.int64, device=x.device) if rows is None else rows
        index = rows[:, None].expand_as(smallest)
        low[activation.index].scatter_reduce_(0, index, smallest, "amin")
        high[activation.index].scatter_reduce_(0, index, largest, "amax")

    stream_sites(program, inputs, collect, device=device, limit=limit, progress=progress)
    return {index: Extremes(low[index], high[index]) for index in low}
