"""The smallest and largest value of every channel at every timestep, of many activations in one streaming pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.store import CalibrationSet
from dmq_fx.calibration.streaming import stream_sites
from dmq_fx.errors import CalibrationError
from dmq_fx.numerics.equivalent_scaling import balanced_scale, largest_by_input, smoothquant_scale
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import PassContext, Program
from dmq_fx.program.scaling_groups import ScalingGroup


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
    program: Program, groups: Sequence[ScalingGroup], context: PassContext, calibration: CalibrationSet
) -> dict[int, Extremes]:
    """Extremes of the groups' full-precision inputs over all of `calibration`, by activation index.

    Raises CalibrationError for a value that is not finite.
    """
    by_site = {group.sites[0].name: group for group in groups}
    low: dict[int, Tensor] = {}
    high: dict[int, Tensor] = {}

    def collect(planned: PlannedSite, args: tuple[Any, ...], output: Tensor, slot: Tensor | None) -> None:
        group = by_site.get(planned.name)
        if group is None:
            return
        activation, x = group.activation, args[0].float()
        rest = [dim for dim in range(1, x.dim()) if dim != group.axis]
        smallest, largest = (x.amin(rest), x.amax(rest)) if rest else (x, x)
        if not bool(torch.isfinite(smallest + largest).all()):
            raise CalibrationError("the input of this site is not finite", where=planned.name)
        slots = len(program.timesteps) if activation.spec.per_timestep else 1
        rows = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        if slots > 1 and slot is not None:
            rows = slot.repeat_interleave(activation.batch_multiple)
        if activation.index not in low:
            low[activation.index] = torch.full((slots, group.channels), torch.inf, device=x.device)
            high[activation.index] = torch.full_like(low[activation.index], -torch.inf)
        index = rows[:, None].expand_as(smallest)
        low[activation.index].scatter_reduce_(0, index, smallest, "amin")
        high[activation.index].scatter_reduce_(0, index, largest, "amax")

    total = len(calibration) * calibration.steps
    stream_sites(
        program,
        calibration,
        collect,
        device=context.device,
        limit=None,
        progress=lambda done: context.progress("channel ranges", done, total),
    )
    return {index: Extremes(low[index], high[index]) for index in low}


def closed_form(program: Program, group: ScalingGroup, extremes: Extremes, alpha: float) -> Tensor:
    """SmoothQuant's gamma of a group, [channels], from its extremes and the weights of all its sites."""
    return smoothquant_scale(extremes.largest, _largest_weights(program, group), alpha)


def balanced(program: Program, group: ScalingGroup, extremes: Extremes) -> Tensor:
    """MPQ-DM's pre-scaling of a group as gamma, [channels], likewise."""
    return balanced_scale(extremes.largest, _largest_weights(program, group))


def _largest_weights(program: Program, group: ScalingGroup) -> Tensor:
    names = [planned.site.weight or "" for planned in group.sites]
    return largest_by_input([get_tensor(program.traced.graph_module, name) for name in names])
