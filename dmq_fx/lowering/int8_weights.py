"""A quantized weight in the numbers that int8 kernels take: integers without zero points, scales and sums by output."""

from __future__ import annotations

import torch
from torch import Tensor

from dmq_fx.numerics import QuantizedWeight
from dmq_fx.program.program import along_inputs


def centred(weight: QuantizedWeight) -> Tensor:
    """Integers less their zero points, int8, of the weight's shape; the caller knows that they fit.

    The weight's own tensor, where that is what it holds.
    """
    if weight.integers.dtype == torch.int8 and not weight.zero_point.any():
        return weight.integers
    rows = weight.integers.to(torch.int32).reshape(max(weight.zero_point.numel(), 1), -1)
    values = (rows - weight.zero_point.reshape(-1, 1).to(rows)).reshape(weight.integers.shape)
    return values.to(torch.int8)


def sums_by_output(weight: QuantizedWeight, factors: Tensor | None = None) -> Tensor:
    """Dequantized weights summed by output channel, float64 [out]. factors: of the input channels, [in]."""
    values = centred(weight)
    if factors is None:
        sums = values.flatten(1).sum(1, dtype=torch.int32).double()  # exact, as are sums of whole numbers in float64
    else:
        wide = values.double()
        sums = (wide * along_inputs(factors, wide)).flatten(1).sum(1)
    return sums * scales_by_output(weight).double()


def scales_by_output(weight: QuantizedWeight) -> Tensor:
    """Scales as kernels take them: float32 [out]."""
    return weight.scale.float().reshape(-1).expand(weight.integers.shape[0]).contiguous()
