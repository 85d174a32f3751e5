"""torchao's tensors around a recipe's own integers and scales: nothing is rounded a second time.

torchao 0.18 rounds activations by the expression that this project uses (multiply by the reciprocal of the scale, round
half to even, add the zero point, clamp), so that its integers are those of fake quantization, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchao.kernel import int_scaled_matmul
from torchao.quantization import Int8Tensor, IntxUnpackedToInt8Tensor, MappingType, PerRow, PerTensor
from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

from dmq_fx.numerics import IntegerGrid, QuantizedWeight

ACTIVATION_BITS = (7, 8)
"""Activation integers that Int8Tensor can make: those of int8, and with `reduce_range` those of half its range."""


@dataclass(frozen=True)
class StaticRange:
    """One range for all samples. channel_scale: of every channel, [in], where they differ before rounding.

    scale: of the integers. zero_point: on the recipe's own grid, unsigned where that is asymmetric.
    """

    scale: float
    zero_point: int
    channel_scale: Tensor | None = None


def weight_only(weight: QuantizedWeight, dtype: torch.dtype) -> Int8Tensor:
    """A weight that meets activations in `dtype`: a product with the integers, then the scales.

    weight: symmetric, with one scale or one for every output.
    """
    return Int8Tensor(centred(weight), _in_blocks(weight.scale), _block_size(weight), dtype)


def weight_only_grouped(weight: QuantizedWeight, dtype: torch.dtype) -> IntxUnpackedToInt8Tensor:
    """A weight of any granularity and with any zero points, 2 to 8 bits: dequantized, then multiplied."""
    grid = weight.grid.widest
    offset = grid_offset(grid)
    return IntxUnpackedToInt8Tensor(
        (weight.integers.to(torch.int16) - offset).to(torch.int8),
        _in_blocks(weight.scale),
        _in_blocks(weight.zero_point - offset).to(torch.int8),
        getattr(torch, f"int{grid.bits}"),
        tuple(_block_size(weight)),
        dtype,
        None,
    )


def with_static_range(weight: QuantizedWeight, grid: IntegerGrid, found: StaticRange, dims: int) -> Int8Tensor:
    """A weight that rounds its activations, of `dims` dimensions, to int8 with one range, and multiplies integers.

    Channels that are scaled are multiplied by their own reciprocals before rounding, and what the scale of the integers
    was goes into the scales of the weight: dividing by gamma first and by the scale then would move integers.
    """
    by_channel = found.channel_scale is not None
    shape = [1] * dims
    scale = torch.full(shape, 1.0 if by_channel else found.scale, device=weight.integers.device)
    return Int8Tensor(
        centred(weight),
        _in_blocks(weight.scale) * (found.scale if by_channel else 1.0),
        _block_size(weight),
        torch.float32,
        act_quant_scale=scale,
        act_quant_zero_point=torch.full_like(scale, found.zero_point - grid_offset(grid), dtype=torch.int8),
        act_pre_scale=None if found.channel_scale is None else 1.0 / found.channel_scale,
        act_quant_kwargs=_rounding(grid, by_sample=False),
    )


def without_range(weight: QuantizedWeight, grid: IntegerGrid) -> Int8Tensor:
    """A weight that `of_samples` gives the ranges of a call; by itself torchao would find ranges of its own."""
    return Int8Tensor(
        centred(weight),
        _in_blocks(weight.scale),
        _block_size(weight),
        torch.float32,
        act_quant_kwargs=_rounding(grid, by_sample=True),
    )


@torch.compiler.allow_in_graph
def of_samples(weight: Int8Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, offset: int) -> Int8Tensor:
    """`weight` with the range of every sample's own timestep, for one call.

    x: [rows, ..., in]. scale: [rows], or [rows, in] where channels are scaled; then the result still is to be
    multiplied by the scale of the integers. zero_point: [rows]. offset: what makes the recipe's grid signed.
    """
    between = [1] * (x.dim() - 2)
    by_channel = scale.dim() == 2

    def of_rows(values: Tensor) -> Tensor:
        return values.reshape(-1, *between, 1).expand(*x.shape[:-1], 1).contiguous()

    return Int8Tensor(
        weight.qdata,
        weight.scale,
        weight.block_size,
        weight.dtype,
        act_quant_scale=of_rows(torch.ones_like(scale[:, 0]) if by_channel else scale),
        act_quant_zero_point=of_rows((zero_point - offset).to(torch.int8)),
        act_pre_scale=(1.0 / scale).reshape(-1, *between, x.shape[-1]) if by_channel else None,
        act_quant_kwargs=weight.act_quant_kwargs,
    )


def centred(weight: QuantizedWeight) -> Tensor:
    """Integers less their zero points, int8, [out, in]; the caller knows that they fit."""
    if not weight.zero_point.any():
        return weight.integers.to(torch.int8)
    return (weight.integers.to(torch.int16) - _in_blocks(weight.zero_point).to(torch.int16)).to(torch.int8)


def grid_offset(grid: IntegerGrid) -> int:
    """What an unsigned grid is shifted by to become signed."""
    return 0 if grid.symmetric else 2 ** (grid.bits - 1)


def multiplies_exactly() -> bool:
    """Whether torchao's int8 products are summed without saturation on this CPU: without VNNI, pairs add in 16 bits."""
    x = torch.full((32, 64), 127, dtype=torch.int8)
    return all(
        bool((int_scaled_matmul(x, torch.full((64, 16), value, dtype=torch.int8), torch.ones(1, 1)) == total).all())
        for value, total in ((127, 64 * 127 * 127), (-128, -64 * 127 * 128))
    )


def _rounding(grid: IntegerGrid, *, by_sample: bool) -> QuantizeTensorToInt8Kwargs:
    return QuantizeTensorToInt8Kwargs(
        granularity=PerRow() if by_sample else PerTensor(),
        mapping_type=MappingType.SYMMETRIC if grid.symmetric else MappingType.ASYMMETRIC,
        reduce_range=grid.bits == 7,
    )


def _in_blocks(values: Tensor) -> Tensor:
    """One value, one an output or one a group as torchao has them: [1, 1], [out, 1], [out, groups]."""
    return values.reshape(-1, 1) if values.dim() < 2 else values


def _block_size(weight: QuantizedWeight) -> list[int]:
    """What shares a scale: [out or 1, in or group]."""
    return [size // count for size, count in zip(weight.integers.shape, _in_blocks(weight.scale).shape, strict=True)]
