"""Ranges from a histogram that grows by doubling: percentiles, and the least quantization error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmq_fx.numerics.search import search_histogram
from dmq_fx.observers.base import OBSERVERS, ActivationObserver
from dmq_fx.recipe.language import ActivationSpec

BINS = 8192


def grown(counts: Tensor, limit: float, largest: float) -> tuple[Tensor, float]:
    """Counts in equal bins of [-limit, limit], [bins], and that limit, after it was doubled until `largest` fits.

    A limit is a power of two; 0: there are no counts yet. bins: a multiple of 4.
    """
    needed = 2.0 ** math.ceil(math.log2(max(largest, 2.0**-30)))
    if limit == 0.0:
        return counts, needed
    quarter = len(counts) // 4
    while limit < needed:
        counts = torch.nn.functional.pad(counts.reshape(-1, 2).sum(1), (quarter, quarter))
        limit *= 2
    return counts, limit


class HistogramObserver(ActivationObserver):
    """Counts in `BINS` equal bins of `[-limit, limit]`, a row a slot.

    `limit` is a power of two. Values beyond it double it, and pairs of bins merge into one: no count is
    ever resampled, and the memory does not grow.
    """

    def __init__(self, spec: ActivationSpec, slots: int, site: str) -> None:
        super().__init__(spec, slots, site)
        self.register_buffer("counts", torch.zeros(slots, BINS), persistent=False)
        self.register_buffer("limit", torch.zeros(slots), persistent=False)
        self.counts: Tensor
        self.limit: Tensor

    def observe(self, x: Tensor, slot: int) -> None:
        low, high = torch.aminmax(x)
        self.low[slot] = torch.minimum(self.low[slot], low)
        self.high[slot] = torch.maximum(self.high[slot], high)
        largest = float(torch.maximum(-low, high))
        if not math.isfinite(largest):
            return  # calculate_qparams reports it
        self.counts[slot], limit = grown(self.counts[slot], float(self.limit[slot]), largest)
        self.limit[slot] = limit
        self.counts[slot] += torch.histc(x, BINS, -limit, limit)

    def centers(self) -> Tensor:
        """Middle of every bin, [slots, BINS]."""
        middle = (torch.arange(BINS, device=self.limit.device) + 0.5) * (2 / BINS) - 1
        return middle * self.limit[:, None]


@OBSERVERS.register("percentile")
class PercentileObserver(HistogramObserver):
    """The range that leaves (100 - percentile) / 2 percent of the values out at each end."""

    def ranges(self) -> tuple[Tensor, Tensor]:
        tail = 0.5 - self.spec.percentile / 200
        share = self.counts.double().cumsum(1) / self.counts.double().sum(1, keepdim=True)
        centers = self.centers()
        first = (share > tail).int().argmax(1, keepdim=True)
        last = (share >= 1 - tail - 1e-12).int().argmax(1, keepdim=True)
        low = torch.maximum(centers.gather(1, first)[:, 0], self.low)
        high = torch.minimum(centers.gather(1, last)[:, 0], self.high)
        return torch.where(torch.isfinite(self.low), low, self.low), torch.where(
            torch.isfinite(self.high), high, self.high
        )


@OBSERVERS.register("mse")
class MseObserver(HistogramObserver):
    """The range with the least |x - Q(x)|^2.4 (`dmq_fx.numerics.search`)."""

    def ranges(self) -> tuple[Tensor, Tensor]:
        return search_histogram(self.counts, self.centers(), self.low, self.high, self.grid)
