"""Mean and covariance of features that stream by."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from dmq_fx.errors import DmqError


@dataclass(frozen=True)
class Moments:
    """count rows' mean [d] and covariance [d, d] (divided by count - 1), in float64."""

    count: int
    mean: Tensor
    covariance: Tensor


class RunningMoments:
    """Moments of rows that are added batch by batch, in float64 and constant memory.

    A batch is merged by Chan, Golub and LeVeque's update of the centred sums (1983), which loses nothing where a mean
    is large against its variance. The result does not depend on how rows are batched, beyond float64's rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.empty(0)
        self._scatter = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """rows: [n, d]."""
        rows = rows.double()
        count, mean = len(rows), rows.mean(0)
        centred = rows - mean
        if not self.count:
            self.count, self._mean, self._scatter = count, mean, centred.T @ centred
            return
        total = self.count + count
        shift = mean - self._mean
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(shift, shift, alpha=self.count * count / total)
        self._mean += shift * (count / total)
        self.count = total

    def moments(self) -> Moments:
        """Moments of the rows so far; raises DmqError for fewer than two, which have no covariance."""
        if self.count < 2:
            raise DmqError(f"feature statistics need two images or more, and received {self.count}")
        scatter = (self._scatter + self._scatter.T) / 2
        return Moments(self.count, self._mean.clone(), scatter / (self.count - 1))


class KeptRows:
    """An even choice of at most `limit` rows of a stream of unknown length, in constant memory.

    Of rows 0, 1, 2, ... those are kept whose numbers have the smallest hashes. So a choice does not favour the
    beginning (where an archive has its first class), is the same whatever the batches, and is every row where there
    are no more than `limit`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen = 0
        self._rows = torch.empty(0)
        self._heap: list[tuple[int, int, int]] = []

    def add(self, rows: Tensor) -> None:
        """rows: [n, d]."""
        if self._rows.dim() == 1:
            self._rows = rows.new_empty(self._limit, rows.shape[1])
        for row in rows:
            number, slot = self._seen, len(self._heap)
            self._seen += 1
            entry = (-_hash(number), number, slot)
            if slot < self._limit:
                heapq.heappush(self._heap, entry)
            elif self._heap and entry > self._heap[0]:
                slot = self._heap[0][2]
                heapq.heapreplace(self._heap, (*entry[:2], slot))
            else:
                continue
            self._rows[slot] = row

    def rows(self) -> Tensor:
        """The kept rows in the order in which they came, [kept, d]."""
        slots = [slot for _, _, slot in sorted(self._heap, key=lambda entry: entry[1])]
        return self._rows[slots]


def _hash(number: int) -> int:
    """64 bits that look random: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    word = (number * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


_WORD = 2**64 - 1
