"""Weights whose output channels have bits of their own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmq_fx.errors import InternalError, RecipeError
from dmq_fx.numerics import ChannelGrid, IntegerGrid, qparams, quantize, quantize_weight, weight_grid
from dmq_fx.numerics.adaround import Rounding, fraction_of
from dmq_fx.numerics.equivalent_scaling import affine_scale, fake_quantize_weight
from dmq_fx.numerics.gptq import gptq_weight
from dmq_fx.numerics.quantize import fake_quantize
from dmq_fx.numerics.search import search_rows
from dmq_fx.recipe.language import WeightSpec

RANGES = st.sampled_from(["minmax", "percentile", "mse"])
VALUES = torch.tensor([[-1, -0.6, -0.2, 0.1, 0.3, 0.5, 0.9, 4]])


def spec(range="minmax", bits=3, symmetric=False, **rest):
    return WeightSpec(bits=bits, symmetric=symmetric, range=range, **rest)


@st.composite
def weights(draw, fewest=1):
    """(weight, bits of its channels), of a linear or a convolution."""
    out, columns = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    shape = (out, columns) if draw(st.booleans()) else (out, columns, 2, 2)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    bits = torch.tensor(draw(st.lists(st.integers(fewest, 8), min_size=out, max_size=out)))
    return torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-3, 2)), bits


@given(weights(), RANGES)
@settings(deadline=None, max_examples=40)
def test_one_quantizer_is_the_sum_of_a_masked_one_for_each_width(case, range):
    """T14: rows of other widths are zeros, which stay zeros."""
    weight, bits = case
    whole = quantize_weight(weight, spec(range), bits)
    total = torch.zeros_like(weight)
    for width in bits.unique().tolist():
        member = (bits == width).reshape(-1, *[1] * (weight.dim() - 1))
        part = quantize_weight(weight * member, spec(range), torch.full_like(bits, width)).dequantized()
        assert not (part * ~member).any()
        total += part
    assert torch.equal(whole.dequantized(), total)


@given(weights(fewest=2), st.integers(2, 8), st.booleans(), RANGES)
@settings(deadline=None, max_examples=40)
def test_equal_bits_are_the_uniform_quantizer(case, bits, symmetric, range):
    weight, _ = case
    uniform = quantize_weight(weight, spec(range, bits, symmetric))
    vector = quantize_weight(weight, spec(range, 5, symmetric), torch.full((len(weight),), bits))
    assert torch.equal(uniform.integers, vector.integers) and uniform.integers.dtype == vector.integers.dtype
    assert torch.equal(uniform.scale, vector.scale) and torch.equal(uniform.zero_point, vector.zero_point)
    assert uniform.channel_bits is None and vector.channel_bits is not None
    assert vector.channel_bits.tolist() == [bits] * len(weight)


@given(weights(), RANGES)
@settings(deadline=None, max_examples=40)
def test_integers_and_zero_points_lie_on_the_grid_of_their_channel(case, range):
    """T5: no channel of b bits has more than 2^b values."""
    weight, bits = case
    found = quantize_weight(weight, spec(range), bits)
    rows = found.integers.flatten(1).long()
    assert rows.dtype == torch.int64 and (rows >= 0).all() and (rows <= 2 ** bits[:, None] - 1).all()
    assert ((found.zero_point >= 0) & (found.zero_point <= 2**bits - 1)).all()
    assert all(len(row.unique()) <= 2**width for row, width in zip(rows, bits.tolist(), strict=True))
    assert found.grid.dtype == found.integers.dtype == torch.uint8


def test_one_bit_is_one_sided():
    found = quantize_weight(torch.tensor([[0.9, -0.1, 0.2], [-0.9, 0.1, -0.8]]), spec(), torch.tensor([1, 1]))
    assert found.integers.tolist() == [[1, 0, 0], [0, 1, 0]]
    torch.testing.assert_close(found.dequantized(), torch.tensor([[1.0, 0, 0], [-1.0, 0, -1.0]]))


@pytest.mark.parametrize(
    ("bits", "step", "scale", "zero_point", "error"),
    [
        (1, 20, 4.0, 0, 0.292513),
        (2, 1, 1.65, 1, 0.230670),
        (3, 5, 0.678571, 1, 0.0241315),
        (4, 2, 0.326667, 3, 0.00348737),
        (8, 0, 0.0196078, 51, 3.838e-6),
    ],
)
def test_range_with_the_least_error(bits, step, scale, zero_point, error):
    """T2, the search: its step, scale, zero point and error."""
    grid = ChannelGrid(torch.tensor([bits]), False)
    low, high = search_rows(VALUES, grid)
    assert high.item() == pytest.approx(4 * (1 - 0.01 * step))
    found = qparams(low, high, grid)
    assert found.scale.item() == pytest.approx(scale, rel=1e-5)
    assert found.zero_point.item() == zero_point
    rounded = fake_quantize(VALUES, found.scale, found.zero_point, grid)
    assert (VALUES - rounded).abs().pow(2.4).mean().item() == pytest.approx(error, rel=1e-3)


def test_full_ranges():
    """T1 and T2, minmax."""
    x = torch.tensor([[-1, 0.3, 2]])
    found = quantize_weight(x, spec(), torch.tensor([2]))
    assert (found.scale.item(), found.zero_point.item(), found.integers.tolist()) == (1.0, 1, [[0, 1, 3]])
    assert found.dequantized().tolist() == [[-1, 0, 2]]
    both = quantize_weight(VALUES.expand(2, -1), spec(), torch.tensor([4, 1]))
    assert both.scale.tolist() == pytest.approx([1 / 3, 5.0]) and both.zero_point.tolist() == [3, 0]
    assert both.integers[1].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_zero_is_in_every_range():
    """T3, where the release's search would leave it out: our grids always hold it."""
    found = quantize_weight(torch.tensor([[0.5, 1, 1.5, 2]]), spec("minmax"), torch.tensor([2]))
    assert found.scale.item() == pytest.approx(2 / 3) and found.zero_point.item() == 0


@pytest.mark.parametrize("range", ["minmax", "percentile", "mse"])
def test_degenerate_channels(range):
    """T6: constant, zero and single values."""
    weight = torch.tensor([[0.0, 0.0], [3.0, 3.0], [-2.0, -2.0]])
    for values in (weight, weight[:, :1]):
        found = quantize_weight(values, spec(range), torch.tensor([1, 2, 3]))
        assert found.dequantized().isfinite().all() and (found.scale >= 1e-8).all()
    assert found.dequantized()[0].tolist() == [0.0]


@pytest.mark.parametrize("range", ["minmax", "mse"])
@pytest.mark.parametrize("by_channel", [False, True])
def test_large_weights_are_searched_and_rounded_in_chunks(range, by_channel, monkeypatch):
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    bits = torch.arange(20) % 8 + 1 if by_channel else None
    whole = quantize_weight(weight, spec(range), bits)
    monkeypatch.setattr("dmq_fx.numerics.weights.SEARCH_ELEMENTS", 90)
    assert torch.equal(whole.integers, quantize_weight(weight, spec(range), bits).integers)


@given(weights(fewest=2), st.booleans())
@settings(deadline=None, max_examples=20)
def test_learned_rounding_stays_on_the_grid_of_its_channel(case, symmetric):
    weight, bits = case
    nearest = quantize_weight(weight, spec("mse", 4, symmetric), bits)
    rounding = Rounding.of(weight, nearest)
    assert torch.equal(rounding.hard(rounding.initial()).integers, nearest.integers)
    qmin, qmax = (bound.reshape(-1, 1) for bound in (nearest.grid.qmin, nearest.grid.qmax))
    for alpha in (-20.0, 20.0):
        learned = rounding.hard(torch.full_like(rounding.fraction, alpha))
        rows = learned.integers.flatten(1).long()
        assert (rows >= qmin).all() and (rows <= qmax).all() and torch.equal(learned.grid.bits, bits)
        soft = rounding.soft(fraction_of(torch.full_like(rounding.fraction, alpha)))
        torch.testing.assert_close(soft, learned.dequantized())


@pytest.mark.parametrize("groups", [1, 2])
def test_gptq_rounds_every_row_to_its_own_bits(groups):
    generator = torch.Generator().manual_seed(0)
    weight, bits = torch.randn(8, 6, generator=generator), torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])
    nearest = quantize_weight(weight, spec("mse"), bits)
    hessian = torch.eye(6).expand(groups, -1, -1)
    found = gptq_weight(weight, hessian, nearest, damping=0.0)
    assert torch.equal(found.integers, nearest.integers)  # inputs that have nothing to do with each other
    x = torch.randn(50, 6, generator=generator)
    found = gptq_weight(weight, (x.T @ x).expand(groups, -1, -1), nearest)
    assert (found.integers.long() <= 2 ** bits[:, None] - 1).all() and torch.equal(found.grid.bits, bits)


@given(weights(fewest=2), st.booleans())
@settings(deadline=None, max_examples=20)
def test_differentiable_rounding_is_that_of_the_integers(case, symmetric):
    weight, bits = case
    grid = ChannelGrid(bits, symmetric)
    rows = weight.flatten(1)
    low, high = rows.amin(1), rows.amax(1)
    scale, zero_point = affine_scale(low, high, grid)
    found = qparams(low, high, grid)
    assert torch.equal(scale, found.scale) and torch.equal(zero_point, found.zero_point.float())
    value = weight.clone().requires_grad_()
    rounded = fake_quantize_weight(value, len(bits), torch.ones(len(bits)), grid)
    rounded.sum().backward()
    assert value.grad is not None and value.grad.isfinite().all()
    exact = quantize_weight(weight, spec("minmax", 4, symmetric), bits).dequantized()
    assert ((rounded - exact).abs().flatten(1) <= scale[:, None] * 1.01).all()


def test_grid_for_rows_in_another_shape():
    grid = ChannelGrid(torch.tensor([1, 2, 8]), False)
    x = torch.full((3, 2), 300.0)
    assert grid.shaped(3, 1).clamp(x).tolist() == [[1, 1], [3, 3], [255, 255]]
    assert quantize(x, torch.ones(()), torch.zeros(()), grid.shaped(-1, 1)).tolist() == [[1, 1], [3, 3], [255, 255]]
    assert grid.widest == IntegerGrid(8, False) == IntegerGrid(8, False).shaped(3).widest


def test_bits_that_cannot_be():
    with pytest.raises(InternalError, match=r"asymmetric channels have 1 to 8 bits, got \[0, 3\]"):
        ChannelGrid(torch.tensor([3, 0]), False)
    with pytest.raises(InternalError, match=r"symmetric channels have 2 to 8 bits, got \[1\]"):
        ChannelGrid(torch.tensor([1]), True)
    with pytest.raises(RecipeError, match="symmetric integers have at least 2 bits") as error:
        weight_grid(WeightSpec(bits=2), torch.tensor([1, 3]))
    assert "symmetric: false" in error.value.hint
    with pytest.raises(RecipeError, match="a scale for every output channel, and the granularity is per_group"):
        quantize_weight(torch.ones(4, 64), spec(granularity="per_group"), torch.full((4,), 3))
    with pytest.raises(InternalError, match=r"bits \[3\] are not of the outputs of \[4, 2\]"):
        quantize_weight(torch.ones(4, 2), spec(), torch.full((3,), 3))
