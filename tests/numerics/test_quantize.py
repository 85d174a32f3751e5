"""Ranges to integers: properties, and agreement with torchao and the standard operators."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401
from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver

from dmq_fx.errors import RecipeError
from dmq_fx.numerics import IntegerGrid, qparams, quantize, quantize_weight
from dmq_fx.numerics.quantize import dequantize, fake_quantize
from dmq_fx.numerics.search import search_rows
from dmq_fx.recipe.language import WeightSpec

grids = st.builds(IntegerGrid, st.integers(2, 8), st.booleans())
seeds = st.integers(0, 2**20)


def values(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** torch.empty(shape[0], 1).uniform_(-4, 4, generator=generator)
    return torch.randn(*shape, generator=generator) * scale + torch.randn(shape[0], 1, generator=generator) * scale


@given(grids, seeds)
def test_values_of_the_range_are_within_half_a_step(grid: IntegerGrid, seed: int) -> None:
    x = values(seed, 5, 40)
    scale, zero_point = (p[:, None] for p in qparams(x.amin(1), x.amax(1), grid))
    error = (x - fake_quantize(x, scale, zero_point, grid)).abs()
    # An asymmetric zero point is rounded, which can move an end of the range by up to half a step more.
    bound = 0.5 if grid.symmetric else 1.0
    assert bool((error <= bound * scale * (1 + 1e-4)).all())


@given(grids, seeds)
def test_zero_is_an_integer(grid: IntegerGrid, seed: int) -> None:
    x = values(seed, 4, 10)
    scale, zero_point = qparams(x.amin(1), x.amax(1), grid)
    assert bool((fake_quantize(torch.zeros(4), scale, zero_point, grid) == 0).all())
    assert bool(((zero_point >= grid.qmin) & (zero_point <= grid.qmax)).all())


@given(grids, seeds)
def test_quantizing_twice_changes_nothing(grid: IntegerGrid, seed: int) -> None:
    x = values(seed, 3, 20)
    scale, zero_point = (p[:, None] for p in qparams(x.amin(1), x.amax(1), grid))
    integers = quantize(x, scale, zero_point, grid)
    again = quantize(dequantize(integers, scale, zero_point), scale, zero_point, grid)
    assert torch.equal(integers, again)


@given(grids, seeds)
def test_integers_are_those_of_the_standard_operator(grid: IntegerGrid, seed: int) -> None:
    x = values(seed, 3, 20)
    scale, zero_point = qparams(x.amin(1), x.amax(1), grid)
    ours = quantize(x, scale[:, None], zero_point[:, None], grid)
    theirs = torch.ops.quantized_decomposed.quantize_per_channel(
        x, scale, zero_point, 0, grid.qmin, grid.qmax, grid.dtype
    )
    assert torch.equal(ours, theirs.float())


@given(st.integers(2, 8), seeds)
def test_asymmetric_ranges_agree_with_torchao_observers(bits: int, seed: int) -> None:
    x = values(seed, 6, 30)
    theirs = PerChannelMinMaxObserver(
        ch_axis=0, dtype=torch.uint8, qscheme=torch.per_channel_affine, quant_min=0, quant_max=2**bits - 1, eps=1e-8
    )
    theirs(x)
    scale, zero_point = theirs.calculate_qparams()
    ours = qparams(x.amin(1), x.amax(1), IntegerGrid(bits, False))
    torch.testing.assert_close(ours.scale, scale, rtol=1e-6, atol=0)
    assert torch.equal(ours.zero_point, zero_point.to(torch.int64))


def test_symmetric_range_clips_neither_end() -> None:
    grid = IntegerGrid(4, True)
    scale, zero_point = qparams(torch.tensor([-8.0, -1.0]), torch.tensor([3.0, 7.0]), grid)
    assert scale.tolist() == [1.0, 1.0]
    assert zero_point.tolist() == [0, 0]


def test_constant_zero_channel_has_a_scale() -> None:
    found = quantize_weight(torch.zeros(2, 3), WeightSpec(bits=4, symmetric=False))
    assert bool((found.scale > 0).all())
    assert torch.equal(found.dequantized(), torch.zeros(2, 3))


@settings(deadline=None)
@given(grids, seeds)
def test_search_is_never_worse_than_the_full_range(grid: IntegerGrid, seed: int) -> None:
    x = values(seed, 4, 64)

    def error(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        scale, zero_point = (p[:, None] for p in qparams(low, high, grid))
        return (x - fake_quantize(x, scale, zero_point, grid)).abs().pow(2.4).mean(1)

    found = error(*search_rows(x, grid))
    assert bool((found <= error(x.amin(1), x.amax(1)) * (1 + 1e-5)).all())


def test_search_clips_an_outlier() -> None:
    x = torch.cat([torch.linspace(-1, 1, 4000), torch.tensor([3.0])])[None]
    _, high = search_rows(x, IntegerGrid(3, False))
    assert float(high) < 2.5


@pytest.mark.parametrize(("granularity", "shape"), [("per_tensor", ()), ("per_channel", (16,)), ("per_group", (16, 4))])
@pytest.mark.parametrize("range_", ["minmax", "percentile", "mse"])
def test_weight_granularity(granularity: str, shape: tuple[int, ...], range_: str) -> None:
    weight = values(3, 16, 32)
    spec = WeightSpec(bits=8, granularity=granularity, group_size=8, range=range_, percentile=100.0)
    found = quantize_weight(weight, spec)
    assert tuple(found.scale.shape) == shape == tuple(found.zero_point.shape)
    assert found.integers.dtype == torch.int8
    relative = (found.dequantized() - weight).square().mean() / weight.square().mean()
    assert float(relative) < 1e-3


def test_percentile_leaves_out_both_tails() -> None:
    weight = torch.arange(1.0, 1001.0)[None] - 500
    found = quantize_weight(weight, WeightSpec(bits=8, symmetric=False, range="percentile", percentile=98.0))
    values_ = found.dequantized()
    assert float(values_.max()) == pytest.approx(490, abs=2)
    assert float(values_.min()) == pytest.approx(-489, abs=2)


def test_group_that_does_not_fit() -> None:
    with pytest.raises(RecipeError, match=r"group_size 8 does not fit a weight of shape \[4, 3, 3, 3\]"):
        quantize_weight(torch.zeros(4, 3, 3, 3), WeightSpec(bits=4, granularity="per_group", group_size=8))
