"""Learned rounding: exact at the start, integers at the end, and better than nearest rounding in between."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmq_fx.numerics import IntegerGrid, QuantizedWeight, quantize_weight
from dmq_fx.numerics.adaround import Rounding, RoundingSchedule, fraction_of, reconstruction_loss
from dmq_fx.recipe.language import WeightSpec

SPECS = [
    WeightSpec(bits=bits, symmetric=symmetric, granularity=granularity, group_size=8)
    for bits in (2, 4, 8)
    for symmetric in (True, False)
    for granularity in ("per_tensor", "per_channel", "per_group")
]


def weight_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.bits}-{spec.symmetric}-{spec.granularity}")
def test_soft_rounding_starts_at_the_weight_itself(spec: WeightSpec) -> None:
    weight = weight_of(0, 6, 16)
    base = quantize_weight(weight, spec)
    rounding = Rounding.of(weight, base)
    error = (rounding.soft(fraction_of(rounding.initial())) - weight).abs()
    scale = base.scale.reshape(-1, 1).expand(-1, 96 // max(1, base.scale.numel())).reshape(6, 16)
    inside = (base.integers > base.grid.qmin) & (base.integers < base.grid.qmax)
    if inside.any():
        assert float((error / scale)[inside].max()) < 1e-4
    # at an end of the grid the zero point's own rounding may clip: by less than one half step
    assert float((error / scale).max()) <= 0.5 + 1e-4


@pytest.mark.parametrize("range_", ["minmax", "mse", "percentile"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_hard_rounding_starts_at_the_nearest_integers(range_: str, symmetric: bool) -> None:
    spec = WeightSpec(bits=4, symmetric=symmetric, range=range_, percentile=90.0)
    weight = weight_of(1, 8, 4, 3, 3)
    base = quantize_weight(weight, spec)
    rounding = Rounding.of(weight, base)
    found = rounding.hard(rounding.initial())
    assert found.integers.dtype == base.integers.dtype and torch.equal(found.integers, base.integers)
    assert torch.equal(found.dequantized(), base.dequantized())


@given(st.integers(0, 2**31 - 1), st.sampled_from(SPECS))
@settings(max_examples=60, deadline=None)
def test_hard_rounding_starts_at_the_nearest_integers_of_any_weight(seed: int, spec: WeightSpec) -> None:
    weight = weight_of(seed, 4, 16) * 10 ** float(weight_of(seed + 1, 1))
    base = quantize_weight(weight, spec)
    rounding = Rounding.of(weight, base)
    assert torch.equal(rounding.hard(rounding.initial()).integers, base.integers)


def test_ties_go_to_the_even_integer_as_nearest_rounding_takes_them() -> None:
    grid = IntegerGrid(4, symmetric=True)
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 3.0]])
    integers = torch.tensor([[0, 2, 2, 0, -2, 3]], dtype=torch.int8)
    base = QuantizedWeight(integers, torch.tensor([1.0]), torch.tensor([0]), grid)
    rounding = Rounding.of(weight, base)
    assert torch.equal(rounding.hard(rounding.initial()).integers, integers)


def test_hard_rounding_is_up_or_down_and_stays_on_the_grid() -> None:
    spec = WeightSpec(bits=3, symmetric=False, range="percentile", percentile=80.0)
    weight = weight_of(2, 5, 40)
    base = quantize_weight(weight, spec)
    rounding = Rounding.of(weight, base)
    low, high = (rounding.hard(torch.full_like(rounding.initial(), sign)).integers.int() for sign in (-9.0, 9.0))
    assert set((high - low).unique().tolist()) == {0, 1}
    assert int(low.min()) >= base.grid.qmin and int(high.max()) <= base.grid.qmax
    chosen = rounding.hard(torch.where(torch.rand(5, 40) < 0.5, -9.0, 9.0))
    soft = rounding.soft(torch.where(chosen.integers.int() == high, 1.0, 0.0))
    assert torch.equal(soft, chosen.dequantized())
    assert fraction_of(torch.tensor([-9.0, 9.0])).tolist() == [0.0, 1.0]  # fractions saturate, exactly


def test_the_schedule_warms_up_and_then_falls_linearly() -> None:
    schedule = RoundingSchedule(1000)
    assert schedule.beta(0) is None and schedule.beta(199) is None
    assert schedule.beta(200) == 20.0
    assert schedule.beta(600) == pytest.approx(11.0)
    assert schedule.beta(999) == pytest.approx(2.0, abs=0.03)
    assert RoundingSchedule(1000, warmup=0.0).beta(0) == 20.0
    assert schedule.loss(torch.ones(3), 100) is None


def test_the_regulariser_is_summed_over_all_entries() -> None:
    schedule = RoundingSchedule(10, weight=0.01, start=4.0, end=4.0, warmup=0.0)
    fractions = torch.tensor([[0.5, 1.0], [0.0, 0.7]])
    expected = 0.01 * (1 + 0 + 0 + 1 - 0.4**4)
    loss = schedule.loss(fractions, 0)
    assert loss is not None and float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_reconstruction_loss_sums_axis_one_and_averages_the_others() -> None:
    output, target = weight_of(3, 4, 5, 6, 7), weight_of(4, 4, 5, 6, 7)
    expected = ((output - target) ** 2).sum() / (4 * 6 * 7)
    assert float(reconstruction_loss(output, target)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_full_schedule_decides_every_weight_and_beats_nearest_rounding(symmetric: bool) -> None:
    weight = 0.1 * weight_of(5, 16, 32)  # lambda is absolute: it decides fractions where errors are of this size
    mixing = weight_of(6, 32, 32) / 32**0.5
    x = weight_of(7, 256, 32) @ mixing  # correlated inputs: there is something to be gained
    base = quantize_weight(weight, WeightSpec(bits=3, symmetric=symmetric))
    rounding, schedule = Rounding.of(weight, base), RoundingSchedule(1500)
    alpha = rounding.initial().requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=2e-2)
    target = x @ weight.T
    for iteration in range(schedule.iterations):
        optimizer.zero_grad()
        fractions = fraction_of(alpha)
        loss = reconstruction_loss(x @ rounding.soft(fractions).T, target)
        pushed = schedule.loss(fractions, iteration)
        (loss if pushed is None else loss + pushed).backward()
        optimizer.step()
    h = fraction_of(alpha.detach())
    assert float((torch.minimum(h, 1 - h) < 0.01).float().mean()) >= 0.99
    learned = float(reconstruction_loss(x @ rounding.hard(alpha).dequantized().T, target))
    nearest = float(reconstruction_loss(x @ base.dequantized().T, target))
    assert learned < 0.7 * nearest
