"""Learned step sizes: values, exact gradients (mpq-dm T4), and how many values there are (T5)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmq_fx.distillation.quantizers import learned_fake_quantize
from dmq_fx.numerics import IntegerGrid, dequantize, quantize


def values_and_gradients(x: list[float], scale: float, zero_point: float, bits: int) -> tuple[torch.Tensor, ...]:
    """Fake-quantized x, and the gradients of every element: by x, by a scale of its own, by a zero point of its own."""
    data = torch.tensor(x, requires_grad=True)
    scales = torch.full_like(data, scale, requires_grad=True)
    zeros = torch.full_like(data, zero_point, requires_grad=True)
    found = learned_fake_quantize(data, scales, zeros, 0.0, 2.0**bits - 1)
    found.sum().backward()
    assert data.grad is not None and scales.grad is not None and zeros.grad is not None
    return found.detach(), data.grad, scales.grad, zeros.grad


def test_gradients_inside_and_at_both_ends() -> None:
    found, of_x, of_scale, of_zero = values_and_gradients([-3, 0.3, 0.7, 9], 0.5, 2, 3)
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.5, 0.5, 2.5]))
    torch.testing.assert_close(of_x, torch.tensor([0.0, 1, 1, 0]))
    torch.testing.assert_close(of_scale, torch.tensor([-2, 0.4, -0.4, 5]))
    torch.testing.assert_close(of_zero, torch.tensor([-0.5, 0, 0, -0.5]))


def test_gradients_of_shared_scales_are_sums() -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    shared = torch.tensor(0.3, requires_grad=True)
    rows = torch.full((6, 1), 0.3, requires_grad=True)
    zero = torch.tensor(2.0)
    for scale in (shared, rows):
        learned_fake_quantize(x, scale, zero, 0.0, 7.0).square().sum().backward()
    assert shared.grad is not None and rows.grad is not None
    torch.testing.assert_close(rows.grad.sum(), shared.grad)


def test_factors_by_channel() -> None:
    """x / gamma is rounded: as quantizing x / gamma itself, with the gradient of x divided by gamma."""
    gamma = torch.tensor([0.5, 2.0, 1.0])
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor(0.25, requires_grad=True)
    plain = torch.tensor(0.25, requires_grad=True)
    outer, inner = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = learned_fake_quantize(outer, scale, torch.tensor(4.0), 0.0, 7.0, up=gamma)
    wanted = learned_fake_quantize(inner / gamma, plain, torch.tensor(4.0), 0.0, 7.0)
    torch.testing.assert_close(found, wanted)
    (found.square().sum() + wanted.square().sum()).backward()
    torch.testing.assert_close(outer.grad, inner.grad)
    torch.testing.assert_close(scale.grad, plain.grad)


@settings(deadline=None, max_examples=50)
@given(bits=st.integers(1, 8), zero_point=st.floats(-1, 256, allow_nan=False), scale=st.floats(0.01, 10))
def test_no_more_values_than_integers(bits: int, zero_point: float, scale: float) -> None:
    x = torch.linspace(-300, 300, 20001) * scale
    found = learned_fake_quantize(x, torch.tensor(scale), torch.tensor(zero_point), 0.0, 2.0**bits - 1)
    assert len(found.unique()) <= 2**bits


@pytest.mark.parametrize(("bits", "zero_point"), [(2, 1.3), (4, 7.5), (1, 0.5)])
def test_an_unrounded_zero_point_gives_one_value_more(bits: int, zero_point: float) -> None:
    x, scale, zero = torch.linspace(-30, 30, 20001), torch.tensor(1.0), torch.tensor(zero_point)
    high = 2.0**bits - 1
    values = learned_fake_quantize(x, scale, zero, 0.0, high, rounded=False).mul(1e4).round().unique()
    assert len(values) == 2**bits + 1
    assert len(learned_fake_quantize(x, scale, zero, 0.0, high).unique()) == 2**bits


@settings(deadline=None, max_examples=50)
@given(
    bits=st.integers(2, 8),
    seed=st.integers(0, 1000),
    zero_point=st.integers(0, 3),
    scale=st.floats(0.0078125, 1, width=32),
)
def test_values_are_those_of_the_graph(bits: int, seed: int, zero_point: int, scale: float) -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(seed))
    grid, s, z = IntegerGrid(bits, False), torch.tensor(scale), torch.tensor(float(zero_point))
    found = learned_fake_quantize(x, s, z, float(grid.qmin), float(grid.qmax))
    assert torch.equal(found, dequantize(quantize(x, s, z, grid), s, z))
