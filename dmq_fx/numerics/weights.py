"""Weights as integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmq_fx.errors import InternalError, RecipeError
from dmq_fx.numerics.grid import ChannelGrid, Grid, IntegerGrid
from dmq_fx.numerics.qparams import qparams
from dmq_fx.numerics.quantize import quantize
from dmq_fx.numerics.search import search_rows
from dmq_fx.recipe.language import WeightSpec

SEARCH_ELEMENTS = 2**17
"""Weights searched, or rounded, at once: few enough to stay in a core's cache over the candidates."""


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers of a weight.

    integers: int8 or uint8, of the weight's shape.
    scale, zero_point: [] (per_tensor), [out] (per_channel) or [out, groups] (per_group); float32 and int64.
    grid: what values the integers can have; a `ChannelGrid` with bits [out] where output channels differ.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    grid: Grid

    @property
    def channel_bits(self) -> Tensor | None:
        """Bits of every output channel, int64 [out]; None where all have those of the scheme."""
        return self.grid.bits if isinstance(self.grid, ChannelGrid) else None

    def dequantized(self) -> Tensor:
        """float32 values that the integers stand for, of the weight's shape."""
        rows = self.integers.reshape(max(self.scale.numel(), 1), -1).float()  # of integers: a copy
        values = rows.sub_(self.zero_point.reshape(-1, 1)).mul_(self.scale.reshape(-1, 1))
        return values.reshape(self.integers.shape)


def scale_shape(shape: tuple[int, ...], spec: WeightSpec) -> tuple[int, ...]:
    """Shape of the scales of a weight of `shape`; raises RecipeError if groups do not divide its inputs."""
    if spec.granularity == "per_tensor":
        return ()
    if spec.granularity == "per_channel":
        return (shape[0],)
    if len(shape) != 2 or shape[1] % spec.group_size:
        raise RecipeError(
            f"granularity per_group with group_size {spec.group_size} does not fit a weight of shape {list(shape)}",
            hint="per_group needs a linear layer whose inputs are a multiple of group_size; use per_channel elsewhere",
        )
    return (shape[0], shape[1] // spec.group_size)


def weight_grid(spec: WeightSpec, channel_bits: Tensor | None = None) -> Grid:
    """The grid of a weight: of the scheme's bits, or of `channel_bits`, [out], where a pass allocated them.

    Raises RecipeError if output channels do not have scales of their own, or are to have one bit without a zero point.
    """
    if channel_bits is None:
        return IntegerGrid(spec.bits, spec.symmetric)
    if spec.granularity != "per_channel":
        raise RecipeError(
            f"bits by output channel need a scale for every output channel, and the granularity is {spec.granularity}",
            hint="give the scheme's weight `granularity: per_channel`",
        )
    if spec.symmetric and int(channel_bits.min()) < 2:
        raise RecipeError(
            "symmetric integers have at least 2 bits, and a channel was given 1",
            hint="give the scheme's weight `symmetric: false`",
        )
    return ChannelGrid(channel_bits.to(torch.int64), spec.symmetric)


def quantize_weight(weight: Tensor, spec: WeightSpec, channel_bits: Tensor | None = None) -> QuantizedWeight:
    """Integers of `weight` ([out, in / groups, ...]) by the range of `spec`.

    channel_bits: bits of every output channel, int [out], in place of the scheme's.
    Raises RecipeError as `scale_shape` and `weight_grid`.
    """
    grid = weight_grid(spec, None if channel_bits is None else channel_bits.to(weight.device))
    if channel_bits is not None and channel_bits.shape != weight.shape[:1]:
        raise InternalError(f"bits {list(channel_bits.shape)} are not of the outputs of {list(weight.shape)}")
    shape = scale_shape(tuple(weight.shape), spec)
    rows = weight.detach().float().reshape(max(torch.Size(shape).numel(), 1), -1)
    low, high = _ranges(rows, spec, grid)
    scale, zero_point = qparams(low, high, grid)
    integers = _rounded(rows, scale, zero_point, grid)
    return QuantizedWeight(integers.reshape(weight.shape), scale.reshape(shape), zero_point.reshape(shape), grid)


def _rounded(rows: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Integers of `rows`, a few rows at a time: what rounding needs beside them stays in a core's cache."""
    integers = torch.empty(rows.shape, dtype=grid.dtype, device=rows.device)
    chunk = max(1, SEARCH_ELEMENTS // max(1, rows.shape[1]))
    parts = [tensor.split(chunk) for tensor in (integers, rows, scale, zero_point)]
    grids = _split(grid, chunk, len(parts[0]))
    for into, values, scales, zero_points, own in zip(*parts, grids, strict=True):
        into.copy_(quantize(values, scales[:, None], zero_points[:, None], own.shaped(-1, 1)))
    return integers


def _ranges(rows: Tensor, spec: WeightSpec, grid: Grid) -> tuple[Tensor, Tensor]:
    if spec.range == "minmax":
        return rows.amin(1), rows.amax(1)
    if spec.range == "percentile":
        return _percentile(rows, spec.percentile)
    chunk = max(1, SEARCH_ELEMENTS // rows.shape[1])
    parts = rows.split(chunk)
    found = [search_rows(part, own) for part, own in zip(parts, _split(grid, chunk, len(parts)), strict=True)]
    return torch.cat([low for low, _ in found]), torch.cat([high for _, high in found])


def _split(grid: Grid, chunk: int, parts: int) -> Sequence[Grid]:
    """The grids of chunks of rows."""
    if isinstance(grid, IntegerGrid):
        return [grid] * parts
    return [ChannelGrid(bits, grid.symmetric) for bits in grid.bits.split(chunk)]


def _percentile(rows: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """The range that leaves (100 - percentile) / 2 percent of every row's values out at each end."""
    count = rows.shape[1]
    rank = min(count, max(1, round(count * (0.5 + percentile / 200))))
    return rows.kthvalue(count + 1 - rank, 1).values, rows.kthvalue(rank, 1).values
