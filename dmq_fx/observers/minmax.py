"""Smallest and largest value: of all values seen, or of batches by a moving average."""

from __future__ import annotations

import torch
from torch import Tensor

from dmq_fx.observers.base import OBSERVERS, ActivationObserver


@OBSERVERS.register("minmax")
class MinMaxObserver(ActivationObserver):
    """Smallest and largest value seen."""

    def observe(self, x: Tensor, slot: int) -> None:
        low, high = torch.aminmax(x)
        self.low[slot] = torch.minimum(self.low[slot], low)
        self.high[slot] = torch.maximum(self.high[slot], high)


@OBSERVERS.register("ema_minmax")
class EmaMinMaxObserver(ActivationObserver):
    """Moving average of each batch's smallest and largest value: the first batch sets it, later ones move it."""

    def observe(self, x: Tensor, slot: int) -> None:
        low, high = torch.aminmax(x)
        if self.low[slot] == torch.inf and self.high[slot] == -torch.inf:
            self.low[slot], self.high[slot] = low, high
            return
        self.low[slot] = torch.lerp(low, self.low[slot], self.spec.momentum)
        self.high[slot] = torch.lerp(high, self.high[slot], self.spec.momentum)
