"""Bits by output channel: which channels get one more, which one fewer.

MPQ-DM (AAAI 2025), outlier-driven mixed quantization: channels with heavy tails (a large kurtosis) need the finer grid.
Of the candidates, groups of a tenth of the channels at each end, the one with the least output error is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUPS = 10
"""A candidate moves whole tenths of the channels."""


@dataclass(frozen=True)
class Candidate:
    """percent: of the channels, nominally, at each end. more, fewer: channels with a bit more, and with one fewer."""

    percent: int
    more: int
    fewer: int

    def bits(self, order: Tensor, bits: int) -> Tensor:
        """Bits of every channel, int64 [channels]. order: the channels, those first that are to have more."""
        found = torch.full_like(order, bits)
        found[order[: self.more]] = bits + 1
        found[order[len(order) - self.fewer :]] = bits - 1
        return found


def candidates(channels: int, percents: Sequence[int], extra: float = 0.0) -> tuple[Candidate, ...]:
    """The candidates that fit a layer, in the order of `percents`: multiples of max(1, channels // 10) at each end.

    extra: share of the channels that get a bit more beside those (MPQ-DM+), whole channels, rounded down.
    """
    size, added = max(1, channels // GROUPS), int(extra * channels + 1e-9)
    found = [Candidate(percent, percent // GROUPS * size + added, percent // GROUPS * size) for percent in percents]
    return tuple(candidate for candidate in found if candidate.more + candidate.fewer <= channels)


def kurtosis(weight: Tensor) -> Tensor:
    """mean((w - mean)^4) / std^4 of every output channel of [out, ...], float64 [out]; 0 where all values are equal.

    With the unbiased standard deviation, and 3 not taken off: 2e5 normal values have about 3.
    """
    rows = weight.detach().double().flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    variance = centred.square().sum(1) / max(rows.shape[1] - 1, 1)
    varies = rows.amax(1) > rows.amin(1)
    return torch.where(varies, centred.pow(4).mean(1) / torch.where(varies, variance, 1.0).square(), 0.0)


def order_by(score: Tensor) -> Tensor:
    """Channels by falling score, the lower index first among equals; int64 [channels]."""
    return score.argsort(descending=True, stable=True)


def output_error(errors: Tensor, order: Tensor, candidate: Candidate) -> float:
    """Error of a layer whose channels have a candidate's bits.

    errors: of every channel with one bit fewer, with the layer's own, with one more, float64 [3, channels].
    """
    place = candidate.bits(order, 1)  # 0, 1 or 2
    return float(errors.gather(0, place[None, :]).sum())
