"""The one expression that turns a real number into an integer, and back.

It is the expression of `quantized_decomposed.quantize_per_channel`: multiply by the reciprocal of the scale,
round half to even, add the zero point, clamp. Range searches and learned passes use these functions, so
that what they measure is what the graph computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmq_fx.numerics.grid import IntegerGrid


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid) -> Tensor:
    """Integers of `x` as float32; `scale` and `zero_point` broadcast against `x`."""
    return torch.clamp(torch.round(x * (1.0 / scale)) + zero_point, grid.qmin, grid.qmax)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Real values of the integers `q`."""
    return (q - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid) -> Tensor:
    """`x` rounded to the values that its integers can stand for."""
    return dequantize(quantize(x, scale, zero_point, grid), scale, zero_point)
