"""Closed form and gradients of equivalent scaling (shared specification 8.14 a, b and 9.1)."""

from __future__ import annotations

import torch

from dmq_fx.numerics import IntegerGrid
from dmq_fx.numerics.equivalent_scaling import (
    ScaledFakeQuantize,
    affine_scale,
    fake_quantize_weight,
    largest_by_input,
    round_through,
    smoothquant_scale,
)

GRID = IntegerGrid(8, False)


def test_migration_strength_evens_out_one_side_or_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.rand(12, generator=generator) + 0.1, torch.rand(12, generator=generator) + 0.1
    weights_even, activations_even = smoothquant_scale(x, w, 0.0), smoothquant_scale(x, w, 1.0)
    assert torch.allclose(w * weights_even, (w * weights_even)[0].expand(12))
    assert torch.allclose(x / activations_even, (x / activations_even)[0].expand(12))
    half = smoothquant_scale(x, w, 0.5)
    assert torch.allclose(x / half, (x / half)[0] / (w * half)[0] * w * half)  # both sides share their maxima
    assert torch.isclose(half.log().mean(), torch.zeros(()), atol=1e-6)


def test_channels_without_values_stay() -> None:
    x, w = torch.tensor([0.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 4.0])
    assert smoothquant_scale(x, w, 0.5).tolist()[:2] == [1.0, 1.0]
    assert torch.equal(smoothquant_scale(torch.zeros(3), w, 0.5), torch.ones(3))


def test_largest_weight_over_sites_that_share_an_input() -> None:
    first, second = torch.tensor([[1.0, -5.0], [2.0, 0.0]]), torch.tensor([[-3.0, 1.0]])
    assert largest_by_input([first, second]).tolist() == [3.0, 5.0]


def composed(x: torch.Tensor, gamma: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    real = x / (scale[:, None, None, None] * gamma[:, None, None])
    zero_point = zero_point[:, None, None, None]
    centred = torch.clamp(round_through(real), GRID.qmin - zero_point, GRID.qmax - zero_point)
    return centred * scale[:, None, None, None]


def test_gradients_are_those_of_the_composition() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 6, 5, 5, generator=generator).double()
    weight = torch.randn(4, 6, 5, 5, generator=generator).double()
    results = []
    for apply in (
        lambda g, s, z: ScaledFakeQuantize.apply(x, g, s, z, GRID, 1),
        lambda g, s, z: composed(x, g, s, z),
    ):
        gamma = (torch.rand(6, generator=torch.Generator().manual_seed(2)).double() + 0.5).requires_grad_()
        low, high = (x / gamma[:, None, None]).amin((1, 2, 3)), (x / gamma[:, None, None]).amax((1, 2, 3)) * 0.7
        scale, zero_point = affine_scale(low, high, GRID)  # 0.7: some values are clipped
        value = apply(gamma, scale, zero_point)
        (value * weight).sum().backward()
        assert gamma.grad is not None
        results.append((value.detach(), gamma.grad))
    assert torch.allclose(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-6)


def test_an_outlier_channel_is_learned_away() -> None:
    """Spec 8.14 b: one channel 20 times as large, W4A6; 400 iterations lower the error to a third or so."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(256, 16, generator=generator), torch.randn(32, 16, generator=generator) / 4
    x[:, 3] *= 20
    grid, activation_grid = IntegerGrid(4, False), IntegerGrid(6, False)
    gamma = torch.zeros(16, requires_grad=True)
    adam = torch.optim.Adam([gamma], lr=1e-2)
    losses = []
    for _ in range(400):
        scale, zero_point = affine_scale(
            (x / gamma.exp()).amin()[None], (x / gamma.exp()).amax()[None], activation_grid
        )
        rounded = ScaledFakeQuantize.apply(
            x, gamma.exp(), scale.expand(256), zero_point.expand(256), activation_grid, 1
        )
        loss = (rounded @ fake_quantize_weight(w * gamma.exp(), 32, torch.ones(32), grid).T - x @ w.T).square().mean()
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert losses[-1] < 0.45 * losses[0]
    learned = gamma.detach().exp()
    assert float(learned[3] / learned[torch.arange(16) != 3].median()) > 2
