"""Scale and zero point from a range."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine_with_min_max

from dmq_fx.numerics.grid import ChannelGrid, Grid

SMALLEST_SCALE = 1e-8
"""An all-zero channel gets this scale instead of 0, so that nothing is divided by zero."""


class QParams(NamedTuple):
    """scale: float32, zero_point: int64; one element for each thing that has its own scale."""

    scale: Tensor
    zero_point: Tensor


def qparams(low: Tensor, high: Tensor, grid: Grid) -> QParams:
    """Scale and zero point of the ranges `[low, high]`, elementwise; a range always includes zero.

    Zero is included so that the padding of a convolution is an integer, and so that a zero point lies on the
    grid. A symmetric range takes the smallest scale that clips neither end. A `ChannelGrid` broadcasts against them.
    """
    if isinstance(grid, ChannelGrid):
        return _by_channel(low.float(), high.float(), grid)
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


def _by_channel(low: Tensor, high: Tensor, grid: ChannelGrid) -> QParams:
    """torchao's formulas, which know one number of levels, with one for every row."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    qmin, qmax = grid.qmin.to(low), grid.qmax.to(low)
    if grid.symmetric:
        scale = torch.maximum(low / qmin, high / qmax).clamp_min(SMALLEST_SCALE)
        return QParams(scale, torch.zeros_like(scale, dtype=torch.int64))
    scale = ((high - low) / (qmax - qmin)).clamp_min(SMALLEST_SCALE)
    return QParams(scale, grid.clamp(qmin - torch.round(low / scale)).to(torch.int64))
