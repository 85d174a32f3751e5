"""What an observer is.

torchao's pt2e observers hold one range a module. Ours hold one for each timestep slot, in tensors of constant
size, so that one streaming pass over the calibration inputs feeds all of them; the arithmetic from a range to
scale and zero point stays torchao's (`dmq_fx.numerics.qparams`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmq_fx.errors import CalibrationError
from dmq_fx.numerics import IntegerGrid, QParams, qparams
from dmq_fx.recipe.language import ActivationSpec
from dmq_fx.registry import Registry


class ActivationObserver(nn.Module):
    """Watches one activation; a graph node that returns its input unchanged.

    spec: bits and range of the activation. slots: number of ranges (1 if they do not change per timestep).
    site: name used in error messages.
    """

    def __init__(self, spec: ActivationSpec, slots: int, site: str) -> None:
        super().__init__()
        self.spec = spec
        self.slots = slots
        self.site = site
        self.grid = IntegerGrid(spec.bits, spec.symmetric)
        self.register_buffer("low", torch.full((slots,), torch.inf), persistent=False)
        self.register_buffer("high", torch.full((slots,), -torch.inf), persistent=False)
        self.low: Tensor
        self.high: Tensor
        self.gamma: Tensor | None
        self.register_buffer("gamma", None, persistent=False)

    def scale_input(self, gamma: Tensor, axis: int) -> None:
        """Watch x / gamma instead of x; gamma: [channels], along `axis` of x."""
        self.gamma, self.axis = gamma.float(), axis

    def forward(self, x: Tensor, slot: Tensor | None) -> Tensor:
        """x: [batch, ...]; slot: [batch] (or a divisor of it), ignored if there is one slot."""
        seen = x.detach().float()
        if self.gamma is not None:
            seen = seen / self.gamma.reshape(-1, *([1] * (x.dim() - 1 - self.axis)))
        if self.slots == 1 or slot is None:
            self.observe(seen, 0)
            return x
        rows = slot.repeat_interleave(x.shape[0] // slot.shape[0])
        for index in rows.unique().tolist():
            self.observe(seen[rows == index], int(index))
        return x

    def observe(self, x: Tensor, slot: int) -> None:
        """Take the values `x` (any shape, float32) into the statistics of `slot`."""
        raise NotImplementedError

    def ranges(self) -> tuple[Tensor, Tensor]:
        """Low and high end of every slot's range, [slots] each."""
        return self.low, self.high

    def calculate_qparams(self) -> QParams:
        """Scale and zero point of every slot, [slots] each; raises CalibrationError for an empty or infinite range."""
        low, high = self.ranges()
        bad = ~(torch.isfinite(low) & torch.isfinite(high))
        if bool(bad.any()):
            index = int(bad.nonzero()[0])
            seen = not bool((self.low[index] == torch.inf) & (self.high[index] == -torch.inf))
            raise CalibrationError(
                f"the input of this site {'is not finite' if seen else 'was never seen'} at timestep slot {index}",
                where=self.site,
                hint="check the model in full precision" if seen else "raise calibration.samples or calibration.steps",
            )
        return qparams(low, high, self.grid)


OBSERVERS: Registry[type[ActivationObserver]] = Registry("range")
"""Observers by the name of `range:` in an activation spec."""


def make_observer(spec: ActivationSpec, slots: int, site: str) -> ActivationObserver:
    """The observer for `spec`, with `slots` ranges if it is per timestep, else one."""
    return OBSERVERS.get(spec.range)(spec, slots if spec.per_timestep else 1, site)
