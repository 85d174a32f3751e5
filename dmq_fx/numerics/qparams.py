"""Scale and zero point from a range."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine_with_min_max

from dmq_fx.numerics.grid import IntegerGrid

SMALLEST_SCALE = 1e-8
"""An all-zero channel gets this scale instead of 0, so that nothing is divided by zero."""


class QParams(NamedTuple):
    """scale: float32, zero_point: int64; one element for each thing that has its own scale."""

    scale: Tensor
    zero_point: Tensor


def qparams(low: Tensor, high: Tensor, grid: IntegerGrid) -> QParams:
    """Scale and zero point of the ranges `[low, high]`, elementwise; a range always includes zero.

    Zero is included so that the padding of a convolution is an integer, and so that a zero point lies on the
    grid. A symmetric range takes the smallest scale that clips neither end.
    """
    mapping = MappingType.SYMMETRIC_NO_CLIPPING_ERR if grid.symmetric else MappingType.ASYMMETRIC
    scale, zero_point = choose_qparams_affine_with_min_max(
        low.float(),
        high.float(),
        mapping,
        block_size=(),
        target_dtype=grid.dtype,
        quant_min=grid.qmin,
        quant_max=grid.qmax,
        eps=SMALLEST_SCALE,
        scale_dtype=torch.float32,
        zero_point_dtype=torch.int64,
    )
    return QParams(scale, zero_point)
