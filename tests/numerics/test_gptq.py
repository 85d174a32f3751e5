"""GPTQ: its Hessian is that of the layer's inputs, and its integers are the best that its order allows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from dmq_fx.errors import CalibrationError
from dmq_fx.numerics import QuantizedWeight, quantize_weight
from dmq_fx.numerics.gptq import Hessian, Window, gptq_weight, linear_rows, output_error, rescaled, unfold
from dmq_fx.recipe.language import WeightSpec

seeds = st.integers(0, 2**20)
SPEC = WeightSpec(bits=4, symmetric=False, range="mse")


def correlated(seed: int, rows: int, columns: int) -> Tensor:
    """Inputs that depend on each other and differ in size, [rows, columns]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    size = 10 ** torch.empty(columns).uniform_(-1, 1, generator=generator)
    return (torch.randn(rows, columns, generator=generator) @ (mixing + torch.eye(columns))) * size


def weights(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1))


def hessian_of(rows: Tensor) -> Tensor:
    found = Hessian(len(rows), rows.shape[2])
    found.add(rows)
    return found.value()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_independent_inputs_give_nearest_rounding(granularity: str, act_order: bool) -> None:
    weight = weights(0, 12, 64)
    nearest = quantize_weight(weight, WeightSpec(bits=3, granularity=granularity, group_size=16))
    for hessian in (torch.eye(64)[None], torch.diag(torch.linspace(0.1, 3, 64))[None]):
        found = gptq_weight(weight, hessian, nearest, act_order=act_order, block=24)
        assert torch.equal(found.integers, nearest.integers)


@settings(deadline=None, max_examples=30)
@given(seeds, st.booleans(), st.sampled_from(["per_tensor", "per_channel", "per_group"]), st.integers(2, 6))
def test_output_error_is_below_that_of_nearest_rounding(
    seed: int, act_order: bool, granularity: str, bits: int
) -> None:
    x = correlated(seed, 400, 48)
    weight = weights(seed, 20, 48)
    nearest = quantize_weight(weight, WeightSpec(bits=bits, symmetric=False, granularity=granularity, group_size=16))
    found = gptq_weight(weight, hessian_of(linear_rows(x)), nearest, act_order=act_order)
    assert found.scale is nearest.scale and found.zero_point is nearest.zero_point
    assert int(found.integers.min()) >= 0 and int(found.integers.max()) < 2**bits

    def error(rounded: QuantizedWeight) -> float:
        return float((x @ (rounded.dequantized() - weight).T).square().sum())

    assert error(found) <= error(nearest)


def test_a_plain_reference_gives_the_same_integers() -> None:
    """Every column rounded, the rest solved anew by least squares: no factor of an inverse, no blocks."""
    x = correlated(3, 300, 40).double()
    weight = weights(3, 8, 40)
    nearest = quantize_weight(weight, SPEC)
    hessian = hessian_of(linear_rows(x))
    exact = hessian[0].double()
    exact = exact + 0.01 * exact.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    work = weight.double().clone()
    expected = torch.empty_like(nearest.integers)
    scale, zero_point = nearest.scale.double()[:, None], nearest.zero_point[:, None]
    for column in range(40):
        value = work[:, column : column + 1]
        integer = (torch.round(value / scale) + zero_point).clamp(0, 15)
        expected[:, column : column + 1] = integer.to(torch.uint8)
        delta = value - (integer - zero_point) * scale
        rest = slice(column + 1, None)
        if column < 39:  # the change of the rest that makes the error least, given the change of this column
            work[:, rest] += delta @ exact[column : column + 1, rest] @ torch.linalg.inv(exact[rest, rest])
    for block in (1, 16, 128):
        assert torch.equal(gptq_weight(weight, hessian, nearest, block=block).integers, expected)


@pytest.mark.parametrize("granularity", ["per_channel", "per_group"])
def test_act_order_is_the_permuted_problem(granularity: str) -> None:
    """Columns sorted beforehand by hand, and put back, give the same integers at the same places."""
    x = correlated(5, 300, 32)
    weight = weights(5, 6, 32)
    nearest = quantize_weight(weight, WeightSpec(bits=4, symmetric=False, granularity=granularity, group_size=8))
    hessian = hessian_of(linear_rows(x))
    found = gptq_weight(weight, hessian, nearest, act_order=True)
    order = hessian[0].diagonal().argsort(descending=True, stable=True)
    assert order.tolist() != list(range(32))
    scale = nearest.scale.reshape(6, -1).repeat_interleave(32 // nearest.scale.reshape(6, -1).shape[1], 1)
    zero_point = nearest.zero_point.reshape(6, -1).repeat_interleave(
        32 // nearest.zero_point.reshape(6, -1).shape[1], 1
    )
    sorted_ = QuantizedWeight(nearest.integers[:, order], scale[:, order], zero_point[:, order], nearest.grid)
    by_hand = gptq_weight(weight[:, order], hessian[:, order][:, :, order], sorted_)
    assert torch.equal(found.integers[:, order], by_hand.integers)
    assert not torch.equal(found.integers, gptq_weight(weight, hessian, nearest).integers)


CONVOLUTIONS = {
    "1d": ((2, 4, 11), (6, 4, 3), {"stride": 2, "padding": 1}),
    "2d": ((2, 4, 7, 6), (5, 4, 3, 3), {"padding": 1}),
    "2d strided": ((2, 4, 8, 9), (5, 4, 3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}),
    "2d grouped": ((2, 6, 5, 5), (4, 3, 3, 3), {"padding": 1, "groups": 2}),
    "2d depthwise": ((2, 6, 5, 5), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    "3d": ((1, 2, 4, 5, 6), (3, 2, 2, 3, 3), {"padding": (0, 1, 1), "stride": (1, 2, 1)}),
}


def window_of(shape: tuple[int, ...], options: dict) -> Window:
    spatial = len(shape) - 2

    def spread(name: str, default: int) -> tuple[int, ...]:
        value = options.get(name, default)
        return value if isinstance(value, tuple) else (value,) * spatial

    padding = tuple((size, size) for size in spread("padding", 0))
    return Window(shape[2:], spread("stride", 1), padding, spread("dilation", 1), options.get("groups", 1))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_are_what_a_convolution_reads(name: str) -> None:
    """Patches times weight rows is the convolution; so the output error of a changed weight is that of H."""
    x_shape, w_shape, options = CONVOLUTIONS[name]
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(x_shape, generator=generator), torch.randn(w_shape, generator=generator)
    convolve = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[len(x_shape)]
    expected = convolve(x, weight, **options)
    window = window_of(w_shape, options)
    rows = unfold(x, window)
    product = rows @ weight.reshape(window.groups, -1, rows.shape[2]).transpose(1, 2)  # [groups, positions, out]
    given = expected.movedim(1, -1).reshape(-1, window.groups, w_shape[0] // window.groups).movedim(1, 0)
    torch.testing.assert_close(product, given, rtol=1e-4, atol=1e-5)
    hessian = hessian_of(rows)
    assert hessian.shape == (window.groups, rows.shape[2], rows.shape[2])
    error = 2 * expected.square().sum() / rows.shape[1]
    assert output_error(weight, hessian) == pytest.approx(float(error), rel=1e-4)


def test_hessian_of_a_convolution_is_that_of_torch_unfold() -> None:
    x = torch.randn(3, 4, 9, 7, generator=torch.Generator().manual_seed(1))
    patches = functional.unfold(x, (3, 3), padding=1, stride=2).movedim(1, 2).reshape(-1, 36)
    found = Hessian(1, 36)
    for part in x.split(1):
        found.add(unfold(part, Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1)))
    torch.testing.assert_close(found.value()[0], 2 / len(patches) * patches.T @ patches)


def test_wide_hessians_are_whole() -> None:
    """More columns than are accumulated at once: both triangles are there."""
    x = correlated(7, 50, 600)
    torch.testing.assert_close(hessian_of(linear_rows(x))[0], 2 / 50 * x.T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["2d grouped", "2d depthwise"])
def test_groups_are_problems_of_their_own(name: str) -> None:
    x_shape, w_shape, options = CONVOLUTIONS[name]
    x = torch.randn(8, *x_shape[1:], generator=torch.Generator().manual_seed(2)).cumsum(-1)
    weight = weights(2, *w_shape)
    nearest = quantize_weight(weight, SPEC)
    hessian = hessian_of(unfold(x, window_of(w_shape, options)))
    found = gptq_weight(weight, hessian, nearest, act_order=True)
    assert output_error(found.dequantized() - weight, hessian) < output_error(nearest.dequantized() - weight, hessian)
    size = w_shape[0] // options["groups"]
    for group in range(options["groups"]):
        part = slice(group * size, (group + 1) * size)
        alone = QuantizedWeight(nearest.integers[part], nearest.scale[part], nearest.zero_point[part], nearest.grid)
        solved = gptq_weight(weight[part], hessian[group : group + 1], alone, act_order=True)
        assert torch.equal(found.integers[part], solved.integers)


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (5, 4)])
def test_scaled_inputs(shape: tuple[int, ...]) -> None:
    """H of x / gamma, from that of x: every kernel position of a channel takes the channel's gamma."""
    gamma = torch.tensor([0.5, 1.0, 2.0, 20.0])
    generator = torch.Generator().manual_seed(4)
    if len(shape) == 4:
        x, window = torch.randn(2, 4, 6, 6, generator=generator), window_of(shape, {"padding": 1})
        pair = [hessian_of(unfold(value, window)) for value in (x, x / gamma[:, None, None])]
    else:
        x = torch.randn(20, 4, generator=generator)
        pair = [hessian_of(linear_rows(value)) for value in (x, x / gamma)]
    torch.testing.assert_close(rescaled(pair[0], gamma), pair[1])


def test_dead_inputs_become_zero() -> None:
    x = correlated(6, 200, 16)
    x[:, [3, 9]] = 0
    weight = weights(6, 5, 16)
    nearest = quantize_weight(weight, SPEC)
    found = gptq_weight(weight, hessian_of(linear_rows(x)), nearest)
    assert torch.equal(found.dequantized()[:, [3, 9]], torch.zeros(5, 2))
    assert not torch.equal(found.integers, nearest.integers)


def test_singular_hessian_without_damping_takes_some() -> None:
    """Fewer rows than columns: no Cholesky factor without damping, so it is raised until there is one."""
    x = correlated(8, 5, 32)
    weight = weights(8, 6, 32)
    nearest = quantize_weight(weight, SPEC)
    hessian = hessian_of(linear_rows(x))
    found = gptq_weight(weight, hessian, nearest, damping=0.0)
    assert output_error(found.dequantized() - weight, hessian) < output_error(nearest.dequantized() - weight, hessian)


def test_no_factor_at_any_damping() -> None:
    weight = weights(9, 3, 4)
    indefinite = torch.diag(torch.tensor([1.0, 1.0, 1.0, -30.0]))[None]
    with pytest.raises(CalibrationError, match="cannot be factored, with a damping of up to 10") as raised:
        gptq_weight(weight, indefinite, quantize_weight(weight, SPEC), where="mid_block.conv")
    assert raised.value.where == "mid_block.conv"


def test_inputs_that_are_not_finite() -> None:
    weight = weights(9, 3, 4)
    hessian = hessian_of(linear_rows(torch.tensor([[1.0, float("nan"), 0.0, 1.0]])))
    with pytest.raises(CalibrationError, match="inputs of this site are not finite") as raised:
        gptq_weight(weight, hessian, quantize_weight(weight, SPEC), where="conv_in")
    assert raised.value.where == "conv_in"
