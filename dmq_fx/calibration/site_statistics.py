"""What a site's input and weight look like, for people: kept while a compile measures errors anyway.

Of constant size by site, whatever the number of samples: the largest |x| of every channel, the range at every timestep
slot, a histogram, four moments. Nothing of it decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from dmq_fx.numerics import IntegerGrid
from dmq_fx.observers.histogram import grown
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import Activation, Program, along_inputs
from dmq_fx.program.scaling import channel_axis

BINS = 128
DRAWN = 8192
"""Values of a call that histogram and moments are taken of, evenly spaced; ranges see all of them."""
DRAWN_WEIGHTS = 65536


@dataclass
class Distribution:
    """channels: largest |x| of each, [channels]. counts: in BINS bins of [-limit, limit]. moments: sums of x^0..4."""

    channels: Tensor
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS))
    limit: float = 0.0
    moments: Tensor = field(default_factory=lambda: torch.zeros(5, dtype=torch.float64))

    def add(self, drawn: Tensor) -> None:
        """Count some values, any shape; those that are not finite are left out."""
        values = drawn[torch.isfinite(drawn)].float()
        if not values.numel():
            return
        self.counts, self.limit = grown(self.counts, self.limit, float(values.abs().max()))
        self.counts = self.counts + torch.histc(values, BINS, -self.limit, self.limit).cpu()
        wide = values.double()
        self.moments += torch.stack([wide.pow(power).sum() for power in range(5)]).cpu()

    @property
    def kurtosis(self) -> float:
        """Fourth standardized moment (3 for a normal distribution); NaN without values or variance."""
        count, first, second, third, fourth = self.moments.tolist()
        if not count:
            return float("nan")
        mean = first / count
        variance = second / count - mean**2
        central = fourth / count - 4 * mean * third / count + 6 * mean**2 * second / count - 3 * mean**4
        return central / variance**2 if variance > 1e-30 else float("nan")


@dataclass
class InputStatistics:
    """A site's input: as it is, and as the integers see it, x 2^k / gamma; the same object where it is not scaled.

    low, high: [slots] each, before scaling. scaled_low, scaled_high: after it.
    """

    before: Distribution
    after: Distribution
    low: Tensor
    high: Tensor
    scaled_low: Tensor
    scaled_high: Tensor


@dataclass(frozen=True)
class WeightStatistics:
    """A site's weight by input channel: as it is, and as it is rounded, W gamma."""

    before: Distribution
    after: Distribution


class StatisticsCollector:
    """Shown every site's full-precision input; only the first operand of a product of activations is kept."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.slots = max(1, len(program.timesteps))
        self.inputs: dict[str, InputStatistics] = {}

    def see(self, planned: PlannedSite, x: Tensor, slot: Tensor | None) -> None:
        """x: a site's input, in full precision. slot: of every sample, [batch]."""
        if x.dim() < 2 or not x.numel():
            return
        axis = input_axis(planned, x)
        low, high = _by_row_and_channel(x, axis)
        channels = low.shape[1]
        found = self.inputs.get(planned.name)
        factor = self._factor(planned, channels, x.device)  # [slots or 1, channels], or None
        if found is None:
            found = self.inputs[planned.name] = self._empty(channels, scaled=factor is not None)
        rows = _rows(slot, len(low)).to(x.device)
        _widen(found.low, found.high, rows, low, high)
        _raise(found.before, torch.maximum(-low, high))
        index = torch.arange(0, x.numel(), max(1, x.numel() // DRAWN) | 1, device=x.device)
        drawn = x.reshape(-1)[index].float()
        found.before.add(drawn)
        if factor is None:
            return
        by_row = factor[rows] if len(factor) > 1 else factor
        low, high = low * by_row, high * by_row
        _widen(found.scaled_low, found.scaled_high, rows, low, high)
        _raise(found.after, torch.maximum(-low, high))
        inner = prod(x.shape[axis + 1 :])
        row = rows[index // (x.numel() // len(x))] if len(factor) > 1 else torch.zeros_like(index)
        found.after.add(drawn * factor[row, index // inner % channels])

    def weight(self, planned: PlannedSite) -> WeightStatistics | None:
        """Of a site's weight; None without one."""
        if planned.site.weight is None:
            return None
        weight = get_tensor(self.program.traced.graph_module, planned.site.weight).detach().float()
        gamma = self.program.input_scale(planned)
        before = _of_weight(weight)
        return WeightStatistics(before, before if gamma is None else _of_weight(weight * along_inputs(gamma, weight)))

    def quantized_range(self, planned: PlannedSite) -> Tensor | None:
        """What the integers of a site's input reach, [slots, (low, high)]; None where it stays in full precision."""
        activation = self._activation(planned)
        if activation is None or activation.index not in self.program.qparams:
            return None
        scale, zero_point = (part.float().cpu() for part in self.program.qparams[activation.index])
        grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)
        ends = torch.stack([(grid.qmin - zero_point) * scale, (grid.qmax - zero_point) * scale], 1)
        return ends.expand(self.slots, 2)

    def _activation(self, planned: PlannedSite) -> Activation | None:
        return self.program.activation_of(planned, planned.site.operands[0]) if planned.site.operands else None

    def _factor(self, planned: PlannedSite, channels: int, device: torch.device) -> Tensor | None:
        """What multiplies the input before it is rounded with one scale: 2^k / gamma, [slots or 1, channels]."""
        activation = self._activation(planned)
        if activation is None or channel_axis(self.program, activation) is None:
            return None
        gamma, shifts = (of.get(activation.index) for of in (self.program.input_scales, self.program.shifts))
        if gamma is None and shifts is None:
            return None
        factor = torch.ones(1, channels) if shifts is None else torch.pow(2.0, shifts.float().cpu())
        return (factor if gamma is None else factor / gamma.float().cpu()).to(device)

    def _empty(self, channels: int, *, scaled: bool) -> InputStatistics:
        before = Distribution(torch.zeros(channels))
        ends = [torch.full((self.slots,), sign * torch.inf) for sign in (1, -1)]
        if not scaled:
            return InputStatistics(before, before, *ends, *ends)
        after = Distribution(torch.zeros(channels))
        return InputStatistics(before, after, *ends, *(end.clone() for end in ends))


def input_axis(planned: PlannedSite, x: Tensor) -> int:
    """The axis of a site's input that its weight sums over; the last one of a product of activations."""
    return 1 if planned.site.op.startswith("conv") else x.dim() - 1


def _by_row_and_channel(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value, [rows, channels] each."""
    values = x.detach().float()
    rest = [dim for dim in range(1, x.dim()) if dim != axis]
    return (values.amin(rest), values.amax(rest)) if rest else (values, values)


def _rows(slot: Tensor | None, rows: int) -> Tensor:
    """The slot of every row; 0 for a value that does not follow the batch."""
    if slot is None or rows % len(slot):
        return torch.zeros(rows, dtype=torch.int64)
    return slot.repeat_interleave(rows // len(slot))


def _widen(low: Tensor, high: Tensor, rows: Tensor, smallest: Tensor, largest: Tensor) -> None:
    low.scatter_reduce_(0, rows.cpu(), smallest.amin(1).cpu(), "amin")
    high.scatter_reduce_(0, rows.cpu(), largest.amax(1).cpu(), "amax")


def _raise(distribution: Distribution, largest: Tensor) -> None:
    torch.maximum(distribution.channels, largest.amax(0).cpu(), out=distribution.channels)


def _of_weight(weight: Tensor) -> Distribution:
    """weight: [out, in, ...]."""
    rest = [dim for dim in range(weight.dim()) if dim != 1]
    found = Distribution(weight.abs().amax(rest).cpu())
    found.add(weight.reshape(-1)[:: max(1, weight.numel() // DRAWN_WEIGHTS) | 1])
    return found
