"""The one expression that turns a real number into an integer, and back.

It is the expression of `quantized_decomposed.quantize_per_channel`: multiply by the reciprocal of the scale,
round half to even, add the zero point, clamp. Range searches and learned passes use these functions, so
that what they measure is what the graph computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmq_fx.numerics.grid import Grid


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Integers of `x` as float32; `scale`, `zero_point` and a `ChannelGrid` broadcast against `x`."""
    return grid.clamp(torch.round(x * (1.0 / scale)) + zero_point)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Real values of the integers `q`."""
    return (q - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """`x` rounded to the values that its integers can stand for."""
    return dequantize(quantize(x, scale, zero_point, grid), scale, zero_point)
