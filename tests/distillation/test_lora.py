"""Low-rank updates: what they add, where they begin (mpq-dm T15 to T17), bits by channel (T14)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dmq_fx.distillation.lora import LoraWeight
from dmq_fx.numerics import QuantizedWeight, quantize_weight
from dmq_fx.recipe.language import WeightSpec

SPEC = WeightSpec(bits=3, symmetric=False, range="mse")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(weight: Tensor, *, per_tap: bool = False, rank: int = 4, start: QuantizedWeight | None = None) -> LoraWeight:
    start = start or quantize_weight(weight, SPEC)
    generator = torch.Generator().manual_seed(3)
    return LoraWeight(weight, start, gamma=None, rank=rank, per_tap=per_tap, generator=generator)


def moved(one: LoraWeight) -> LoraWeight:
    one.b.data.copy_(noise(*one.b.shape, seed=5))
    return one


@pytest.mark.parametrize("per_tap", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3), (6, 5, 3), (6, 1, 3, 3)])
def test_begins_as_nearest_rounding(shape: tuple[int, ...], per_tap: bool) -> None:
    weight = noise(*shape)
    one = lora(weight, per_tap=per_tap)
    assert torch.equal(one(), one.start.dequantized())
    assert torch.equal(one.integers().integers, one.start.integers)


def test_first_factor_is_uniform_in_one_over_root_of_fan_in() -> None:
    one = lora(noise(64, 25, 3, 3), rank=32).requires_grad_(False)
    bound = (25 * 9) ** -0.5
    assert bound * 0.99 < float(one.a.abs().max()) <= bound and abs(float(one.a.mean())) < bound / 20


def test_pointwise_update_is_the_composition_of_two_convolutions() -> None:
    one, x = moved(lora(noise(6, 5, 3, 3))), noise(2, 5, 8, 8, seed=1)
    first = functional.conv2d(x, one.a.reshape(4, 5, 3, 3), padding=1)
    second = functional.conv2d(first, one.b[:, :, :, None])
    torch.testing.assert_close(functional.conv2d(x, one.delta(), padding=1), second, atol=1e-4, rtol=1e-4)


def test_update_by_tap_has_the_rank_at_each_tap() -> None:
    delta = moved(lora(noise(16, 15, 3, 3), per_tap=True, rank=3)).delta()
    for row in range(3):
        for column in range(3):
            assert torch.linalg.matrix_rank(delta[:, :, row, column], rtol=1e-4) == 3
    assert torch.linalg.matrix_rank(delta.flatten(1), rtol=1e-4) > 3
    assert torch.linalg.matrix_rank(moved(lora(noise(16, 15, 3, 3), rank=3)).delta().flatten(1), rtol=1e-4) == 3


@pytest.mark.parametrize("scale", [0.01, 0.037, 0.5])
def test_values_of_integers_round_to_themselves(scale: float) -> None:
    """base: int begins with the integers of nearest rounding at any scale."""
    integers = torch.arange(8, dtype=torch.uint8).repeat(4, 1)
    zero_point = torch.tensor([0, 3, 5, 7])
    start = QuantizedWeight(integers, torch.full((4,), scale), zero_point, quantize_weight(noise(4, 8), SPEC).grid)
    one = lora(start.dequantized(), start=start)
    assert torch.equal(one.integers().integers, integers)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_integers_are_those_of_the_forward(granularity: str) -> None:
    spec = WeightSpec(bits=3, symmetric=False, granularity=granularity, group_size=8)
    weight = noise(6, 16)
    one = moved(lora(weight, start=quantize_weight(weight, spec)))
    one.scale.data.mul_(1.1)
    found = one.integers()
    assert torch.equal(found.dequantized(), one())
    assert not torch.equal(found.integers, one.start.integers)
    assert found.integers.dtype == torch.uint8 and found.scale.shape == one.start.scale.shape


def test_scaled_inputs() -> None:
    """The update is added to the weight before gamma: integers are those of (W + BA) gamma."""
    weight, gamma = noise(6, 5), torch.tensor([[1.0, 2, 0.5, 1, 3]])
    start = quantize_weight(weight * gamma, SPEC)
    generator = torch.Generator().manual_seed(3)
    one = moved(LoraWeight(weight, start, gamma=gamma, rank=2, per_tap=False, generator=generator))
    torch.testing.assert_close(one.merged(), (weight + one.delta()) * gamma)
    assert torch.equal(one.integers().dequantized(), one())


def test_learned_zero_points_of_weights() -> None:
    """Their gradient is -s times that of the clipped values (T4), values stay on integers, and those are written."""
    weight = noise(6, 40)
    start = quantize_weight(weight, SPEC)
    generator = torch.Generator().manual_seed(3)
    options = {"gamma": None, "rank": 2, "per_tap": False, "generator": generator}
    one = LoraWeight(weight * 2, start, learn_zero_point=True, **options)
    one().sum().backward()
    rounded = torch.round(weight * 2 / start.scale[:, None]) + start.zero_point[:, None]
    clipped = ((rounded < 0) | (rounded > 7)).sum(1, keepdim=True)
    assert one.zero_point.grad is not None and bool(clipped.sum() > 0)
    torch.testing.assert_close(one.zero_point.grad, -clipped * start.scale[:, None])
    one.zero_point.data.add_(0.7)
    found = one.integers()
    assert torch.equal(found.dequantized(), one())
    assert torch.equal(found.zero_point, start.zero_point + 1) and found.zero_point.dtype == start.zero_point.dtype
    one.zero_point.data.fill_(100)
    one.clamp_()
    assert bool((one.zero_point == 7).all())


def test_zero_points_are_learned_where_they_are_asked_for_and_there_are_any() -> None:
    symmetric = WeightSpec(bits=3, symmetric=True, range="mse")
    for spec, learn, learned in ((SPEC, True, True), (SPEC, False, False), (symmetric, True, False)):
        start = quantize_weight(noise(6, 5), spec)
        generator = torch.Generator().manual_seed(3)
        one = LoraWeight(
            noise(6, 5), start, gamma=None, rank=2, per_tap=False, generator=generator, learn_zero_point=learn
        )
        assert one.zero_point.requires_grad is learned
        one().sum().backward()
        assert (one.zero_point.grad is not None) is learned
