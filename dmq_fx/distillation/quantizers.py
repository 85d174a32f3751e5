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
    """See the module. up, down: what multiplies the scale before rounding and after it, or None.

    Few passes over memory, of operators that are vectorized: the mask of what is inside is float32, as comparisons to
    booleans, `where` and `clamp` by tensors are several times slower on CPUs than `eq_`, products, `minimum`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: Bound, high: Bound, up: Any, down: Any
    ) -> Tensor:
        ratio, rounded, centred, step = _centred(x, scale, zero_point, low, high, up, down)
        output = centred * step
        inside = rounded.eq_(centred)
        error = centred.sub_(ratio.mul_(inside))
        ctx.save_for_backward(inside, error, step)
        ctx.shapes, ctx.up, ctx.down = (scale.shape, zero_point.shape), up, down
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inside, error, step = ctx.saved_tensors
        of_scale, of_zero_point = None, None
        of_x = gradient * inside
        if ctx.needs_input_grad[1]:
            scaled = gradient if ctx.down is None else gradient * ctx.down
            of_scale = (scaled * error).sum_to_size(ctx.shapes[0])
        if ctx.needs_input_grad[2]:
            clipped = (gradient - of_x).sum_to_size(torch.broadcast_shapes(ctx.shapes[1], step.shape))
            of_zero_point = (-clipped * step).sum_to_size(ctx.shapes[1])
        if ctx.down is not ctx.up:
            if ctx.down is not None:
                of_x.mul_(ctx.down)
            if ctx.up is not None:
                of_x.div_(ctx.up)
        return of_x, of_scale, of_zero_point, None, None, None, None


def _centred(
    x: Tensor, scale: Tensor, zero_point: Tensor, low: Bound, high: Bound, up: Any, down: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x / s, rounded, clipped to what integers less their zero point can be, and what that is multiplied with.

    The expression of dmq_fx.numerics.quantize: integers and zero points are exact in float32, so that it is the same
    whether the zero point is added to the values or taken off the bounds.
    """
    ratio = x * (1.0 / (scale if up is None else scale * up))
    rounded = ratio.round()
    centred = torch.minimum(rounded, high - zero_point)
    return (
        ratio,
        rounded,
        torch.maximum(centred, low - zero_point, out=centred),
        scale if down is None else scale * down,
    )


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
        zero_point = round_straight_through(zero_point)
    if not torch.is_grad_enabled():
        _, _, centred, step = _centred(x, scale, zero_point, low, high, up, down)
        return centred.mul_(step)
    return _LearnedStep.apply(x, scale, zero_point, low, high, up, down)  # type: ignore[return-value]


def round_straight_through(x: Tensor) -> Tensor:
    """x rounded, with the gradient of x."""
    return _RoundStraightThrough.apply(x) if x.requires_grad else x.round()  # type: ignore[return-value]


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient
