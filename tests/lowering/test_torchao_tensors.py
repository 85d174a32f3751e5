"""torchao's tensors hold the recipe's integers and scales, and round activations as this project does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401  (registers the operators)
from torchao.quantization import Int8Tensor
from torchao.quantization.quantize_.common import _choose_quant_func_and_quantize_tensor

from dmq_fx.lowering.torchao_tensors import (
    StaticRange,
    centred,
    grid_offset,
    multiplies_exactly,
    of_samples,
    weight_only,
    weight_only_grouped,
    with_static_range,
    without_range,
)
from dmq_fx.numerics import IntegerGrid, quantize, quantize_weight
from dmq_fx.recipe.language import WeightSpec

qd = torch.ops.quantized_decomposed
needs_vnni = pytest.mark.skipif(not multiplies_exactly(), reason="int8 products overflow on this CPU")
BITS = range(2, 9)
GRANULARITIES = ("per_tensor", "per_channel", "per_group")


def a_weight(seed: int = 0) -> Tensor:
    return torch.randn(12, 32, generator=torch.Generator().manual_seed(seed)) + 0.3


def rounded(weight: Int8Tensor, x: Tensor) -> Tensor:
    """The integers that `torch.nn.functional.linear` makes of `x` for this weight, int8."""
    x = x if weight.act_pre_scale is None else x * weight.act_pre_scale
    scale, zero_point = weight.act_quant_scale, weight.act_quant_zero_point
    return _choose_quant_func_and_quantize_tensor(x, weight.act_quant_kwargs, scale=scale, zero_point=zero_point).qdata


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_grouped_weights_stand_for_the_same_numbers(bits: int, symmetric: bool, granularity: str) -> None:
    spec = WeightSpec(bits=bits, symmetric=symmetric, granularity=granularity, group_size=8)
    weight = quantize_weight(a_weight(), spec)
    tensor = weight_only_grouped(weight, torch.float32)
    assert torch.equal(tensor.dequantize(), weight.dequantized())
    offset = grid_offset(weight.grid)
    assert torch.equal(tensor.qdata.int() + offset, weight.integers.int())
    assert tensor.target_dtype == getattr(torch, f"int{bits}")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert low <= int(tensor.qdata.min()) and int(tensor.qdata.max()) <= high


@pytest.mark.parametrize("granularity", GRANULARITIES[:2])
@pytest.mark.parametrize("bits", BITS)
def test_plain_weights_are_not_copied(bits: int, granularity: str) -> None:
    weight = quantize_weight(a_weight(), WeightSpec(bits=bits, granularity=granularity))
    tensor = weight_only(weight, torch.float32)
    assert tensor.qdata.data_ptr() == weight.integers.data_ptr()
    assert torch.equal(tensor.dequantize(), weight.dequantized())


@pytest.mark.parametrize("granularity", GRANULARITIES[:2])
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_integers_less_their_zero_points_fit_int8(bits: int, granularity: str) -> None:
    weight = quantize_weight(a_weight(), WeightSpec(bits=bits, symmetric=False, granularity=granularity))
    assert weight.zero_point.any()
    values = centred(weight).float() * weight.scale.reshape(-1, 1)
    assert torch.equal(values, weight.dequantized())


QUICK: dict[str, Any] = {"deadline": None, "derandomize": True, "database": None, "max_examples": 60}
SCALES = st.floats(2.0**-12, 4.0, width=32)


@settings(**QUICK)
@given(scale=SCALES, zero=st.floats(0, 1), seed=st.integers(0, 2**31), bits=st.sampled_from((7, 8)), data=st.data())
def test_a_static_range_gives_the_integers_of_fake_quantization(
    scale: float, zero: float, seed: int, bits: int, data: st.DataObject
) -> None:
    """Bit for bit, with values on and beside the borders between integers, whatever the number of dimensions."""
    grid = IntegerGrid(bits, data.draw(st.booleans(), "symmetric"))
    zero_point = 0 if grid.symmetric else round(zero * grid.qmax)
    generator = torch.Generator().manual_seed(seed)
    channel_scale = (
        scale * (torch.rand(32, generator=generator) + 0.1) if data.draw(st.booleans(), "by channel") else None
    )
    shape = data.draw(st.sampled_from(((7, 32), (2, 3, 32), (2, 3, 2, 32))), "shape")
    x = border_values(shape, torch.tensor(scale) if channel_scale is None else channel_scale, generator)
    weight = quantize_weight(a_weight(), WeightSpec(bits=8))
    tensor = with_static_range(weight, grid, StaticRange(scale, zero_point, channel_scale), x.dim())
    bounds = (grid.qmin, grid.qmax, grid.dtype)
    if channel_scale is None:
        expected = qd.quantize_per_tensor(x, scale, zero_point, *bounds)
    else:
        expected = qd.quantize_per_channel(x, channel_scale, torch.full((32,), zero_point), x.dim() - 1, *bounds)
    assert torch.equal(rounded(tensor, x).int() + grid_offset(grid), expected.int())


@settings(**QUICK)
@given(seed=st.integers(0, 2**31), bits=st.sampled_from((7, 8)), data=st.data())
def test_every_sample_is_rounded_with_its_own_range(seed: int, bits: int, data: st.DataObject) -> None:
    grid = IntegerGrid(bits, data.draw(st.booleans(), "symmetric"))
    rows = data.draw(st.sampled_from((1, 3)), "rows")
    shape = (rows, *data.draw(st.sampled_from(((), (5,), (2, 3))), "between"), 32)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows, generator=generator) + 0.01
    if data.draw(st.booleans(), "by channel"):
        scale = scale[:, None] * (torch.rand(32, generator=generator) + 0.1)
    last = shape[-1] if scale.dim() == 2 else 1
    along = scale.reshape(rows, *([1] * (len(shape) - 2)), last)
    zero_point = torch.randint(0, 1 if grid.symmetric else grid.qmax + 1, (rows,), generator=generator)
    x = border_values(shape, along, generator)
    held = without_range(quantize_weight(a_weight(), WeightSpec(bits=8)), grid)
    tensor = of_samples(held, x, scale, zero_point, grid_offset(grid))
    expected = quantize(x, along, zero_point.reshape(-1, *([1] * (x.dim() - 1))), grid)
    assert torch.equal(rounded(tensor, x).float() + grid_offset(grid), expected)


def border_values(shape: tuple[int, ...], scale: Tensor, generator: torch.Generator) -> Tensor:
    """Half integers times the scale, and their neighbours in float32."""
    halves = torch.randint(-600, 600, shape, generator=generator) / 2 * scale
    away = torch.randint(-1, 2, shape, generator=generator).float() * torch.inf
    return torch.where(away.isnan(), halves, torch.nextafter(halves, away))


@needs_vnni
def test_sums_of_a_wide_layer_are_close_where_zero_points_cancel() -> None:
    """Activations after SiLU lie near one end of their range, so that most of a sum is the zero point's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.silu(torch.randn(64, 1280, generator=generator) * 2)
    weight = quantize_weight(torch.randn(96, 1280, generator=generator) / 36 + 0.02, WeightSpec(bits=8))
    grid, scale = IntegerGrid(8, False), float(x.max() - x.min()) / 255
    zero_point = round(-float(x.min()) / scale)
    tensor = with_static_range(weight, grid, StaticRange(scale, zero_point), 2)
    q = rounded(tensor, x).double() + 128
    exact = (q - zero_point) * scale @ weight.dequantized().double().t()
    found = torch.nn.functional.linear(x, tensor)
    assert float((found - exact).abs().max() / exact.abs().max()) < 2e-6
