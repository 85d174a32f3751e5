"""Quantization-aware low-rank updates: a weight is Q(W + B A), merged before it is quantized.

EfficientDM (arXiv:2310.03270), QALoRA; with one B for each tap of a kernel MPQ-DM's (arXiv:2412.11549).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.distillation.quantizers import learned_fake_quantize
from dmq_fx.numerics import QuantizedWeight
from dmq_fx.numerics.qparams import SMALLEST_SCALE


class LoraWeight(nn.Module):
    """One weight of the student: its update and its scales, learned; called without arguments, it gives the values.

    weight: [out, in, ...], what the update is added to. gamma: equivalent scaling of the inputs, broadcast against the
    weight, or None: the values are those of W gamma. start: integers of nearest rounding, whose grid is kept.
    learn_zero_point: zero points, of grids that have them, are learned as well, straight through their rounding.
    """

    def __init__(
        self,
        weight: Tensor,
        start: QuantizedWeight,
        *,
        gamma: Tensor | None,
        rank: int,
        per_tap: bool,
        generator: torch.Generator,
        learn_zero_point: bool = False,
    ) -> None:
        super().__init__()
        out, inputs, taps = weight.shape[0], weight.shape[1], weight[0, 0].numel()
        bound = (inputs * taps) ** -0.5
        a = torch.empty(rank, inputs, taps).uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(a.to(weight.device))
        self.b = nn.Parameter(torch.zeros(out, rank, taps if per_tap else 1, device=weight.device))
        self.scale = nn.Parameter(start.scale.detach().clone().float())
        self.base: Tensor
        self.gamma: Tensor | None
        self.register_buffer("base", weight.detach().float(), persistent=False)
        self.register_buffer("gamma", gamma, persistent=False)
        # as a row of the weight: broadcast over a kernel's taps the product takes four times as long
        self._factors = None if gamma is None else gamma.expand_as(self.base[:1]).reshape(1, -1)
        self.start = start
        self._low, self._high = bounds(start)
        learned = learn_zero_point and not start.grid.symmetric
        self.zero_point = nn.Parameter(start.zero_point.reshape(-1, 1).float(), requires_grad=learned)

    def delta(self) -> Tensor:
        """B A, of the weight's shape."""
        pointwise = self.b.shape[2] == 1
        update: Any = self.b[:, :, 0] @ self.a.flatten(1) if pointwise else _TapProducts.apply(self.b, self.a)
        return update.reshape(self.base.shape)

    def merged(self) -> Tensor:
        """(W + B A) gamma, not rounded."""
        weight = self.delta().add_(self.base)
        return weight if self._factors is None else (weight.flatten(1) * self._factors).reshape(self.base.shape)

    def forward(self) -> Tensor:
        """What the integers of `merged` stand for, float32, of the weight's shape; differentiable."""
        rows = self.merged().reshape(max(self.scale.numel(), 1), -1)
        values = learned_fake_quantize(rows, self.scale.reshape(-1, 1), self.zero_point, self._low, self._high)
        return values.reshape(self.base.shape)

    def clamp_(self) -> None:
        """Keep the scales positive, and learned zero points on the grid."""
        self.scale.data.clamp_(min=SMALLEST_SCALE)
        if self.zero_point.requires_grad:
            self.zero_point.data.clamp_(self._low, self._high)  # type: ignore[arg-type]

    def round_(self) -> None:
        """Put zero points on integers."""
        self.zero_point.data.round_()

    def integers(self) -> QuantizedWeight:
        """The integers that the values of `forward` are those of."""
        with torch.no_grad():
            rows = self.merged().reshape(max(self.scale.numel(), 1), -1)
            zero_point = self.zero_point.round()
            shifted = torch.round(rows * (1.0 / self.scale.reshape(-1, 1))) + zero_point
            found = torch.clamp(shifted, self._low, self._high)  # type: ignore[arg-type]
        integers = found.reshape(self.base.shape).to(self.start.grid.dtype)
        written = zero_point.reshape(self.start.zero_point.shape).to(self.start.zero_point.dtype)
        return QuantizedWeight(integers, self.scale.detach().clone(), written, self.start.grid)


class _TapProducts(torch.autograd.Function):
    """[out, rank, taps] and [rank, in, taps] to [out, in, taps], a product of matrices for each tap.

    What `einsum` gives, which makes its products of matrices whose elements do not lie together, forward and back.
    """

    @staticmethod
    def forward(ctx: Any, b: Tensor, a: Tensor) -> Tensor:
        left, right = (one.movedim(2, 0).contiguous() for one in (b, a))
        ctx.save_for_backward(left, right)
        return torch.bmm(left, right).movedim(0, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        left, right = ctx.saved_tensors
        given = gradient.movedim(2, 0).contiguous()
        of_b, of_a = torch.bmm(given, right.transpose(1, 2)), torch.bmm(left.transpose(1, 2), given)
        return of_b.movedim(0, 2), of_a.movedim(0, 2)


def bounds(weight: QuantizedWeight) -> tuple[Tensor | float, Tensor | float]:
    """Least and greatest integer of a weight: numbers, or [rows, 1] where output channels have bits of their own."""
    low, high = weight.grid.qmin, weight.grid.qmax
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        return low.reshape(-1, 1).float(), high.reshape(-1, 1).float()
    return float(low), float(high)
