"""Fake quantization with learned step sizes: exact gradients of scale and zero point, straight through the rounding.

Learned step size quantization as EfficientDM (He et al., arXiv:2310.03270) and MPQ-DM (arXiv:2412.11549) train it,
without LSQ's scaling of gradients. With v = x / s, q = clip(round(v) + z, low, high), y = (q - z) s:

    | round(v) + z | dy/dx | dy/ds        | dy/dz |
    | inside       | 1     | round(v) - v | 0     |
    | clipped      | 0     | q - z        | -s    |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Bound = Tensor | float
"""The least or greatest integer: a number, or one for each row, shaped to broadcast."""


class _LearnedStep(torch.autograd.Function):
    """See the module. up, down: what multiplies the scale before rounding and after it, or None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: Bound, high: Bound, up: Any, down: Any
    ) -> Tensor:
        # the expression of dmq_fx.numerics.quantize, whose parts are needed one by one
        ratio = x * (1.0 / (scale if up is None else scale * up))
        shifted = torch.round(ratio).add_(zero_point)
        integers = torch.clamp(shifted, low, high)  # type: ignore[arg-type]
        inside = shifted == integers
        centred = integers.sub_(zero_point)
        step = scale if down is None else scale * down
        output = centred * step
        ctx.save_for_backward(inside, torch.where(inside, centred - ratio, centred), step)
        ctx.shapes, ctx.up, ctx.down = (scale.shape, zero_point.shape), up, down
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inside, error, step = ctx.saved_tensors
        of_scale, of_zero_point = None, None
        if ctx.needs_input_grad[1]:
            scaled = gradient if ctx.down is None else gradient * ctx.down
            of_scale = (scaled * error).sum_to_size(ctx.shapes[0])
        if ctx.needs_input_grad[2]:
            clipped = torch.where(inside, 0.0, gradient).sum_to_size(torch.broadcast_shapes(ctx.shapes[1], step.shape))
            of_zero_point = (-clipped * step).sum_to_size(ctx.shapes[1])
        of_x = torch.where(inside, gradient, 0.0)
        if ctx.down is not None:
            of_x = of_x * ctx.down
        return of_x if ctx.up is None else of_x / ctx.up, of_scale, of_zero_point, None, None, None, None


def learned_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    low: Bound,
    high: Bound,
    *,
    rounded: bool = True,
    up: Tensor | None = None,
    down: Tensor | None = None,
) -> Tensor:
    """x rounded to what its integers in `low`..`high` stand for, float32, of the shape of x; differentiable.

    scale, zero_point: float32, broadcast against x. rounded: the zero point is used as the nearest integer, and learned
    straight through that; otherwise as it is, which gives one value more than the bits have integers. up, down: the
    scale before rounding is scale * up, after it scale * down (`dmq_fx.program.scaling`); constants.
    """
    if rounded:
        zero_point = _RoundStraightThrough.apply(zero_point)  # type: ignore[assignment]
    return _LearnedStep.apply(x, scale, zero_point, low, high, up, down)  # type: ignore[return-value]


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient
