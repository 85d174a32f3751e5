"""DMQ's adaptive timestep weighting (shared specification 8.5 and 8.14 e)."""

from __future__ import annotations

import pytest
import torch

from dmq_fx.calibration.timestep_weighting import TimestepWeighting, TimestepWeightingOptions

CPU = torch.device("cpu")


def focal(gamma: float = 20.0) -> TimestepWeighting:
    return TimestepWeighting(TimestepWeightingOptions(kind="focal", gamma=gamma), 20, CPU)


def test_equal_losses_get_equal_weights() -> None:
    weighting, slots = focal(), torch.arange(20)
    weighting.update(torch.full((20,), 0.3), slots, torch.ones(20))
    weights = weighting.weights(slots)
    assert torch.allclose(weights, torch.full((20,), (1 - 1 / 20) ** 20)) and float(weights[0]) == pytest.approx(
        0.358, abs=1e-3
    )


def test_a_step_with_a_large_share_counts_for_little() -> None:
    weighting, slots = focal(), torch.arange(20)
    losses = torch.full((20,), 0.8 / 19)
    losses[7] = 0.2
    weighting.update(losses, slots, torch.ones(20))
    assert float(weighting.weights(slots)[7]) == pytest.approx((1 - 0.2) ** 20, rel=1e-4)  # 0.012


def test_gamma_zero_is_the_plain_mean() -> None:
    weighting, slots = focal(0.0), torch.arange(20)
    weighting.update(torch.rand(20, generator=torch.Generator().manual_seed(0)), slots, torch.ones(20))
    assert torch.equal(weighting.weights(slots), torch.ones(20))


def test_running_losses_sum_a_batch_and_absent_steps_decay() -> None:
    weighting = focal()
    weighting.update(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3, 3, 5]), torch.ones(3))
    weighting.update(torch.tensor([1.0]), torch.tensor([5]), torch.ones(1))
    assert float(weighting.running[3]) == pytest.approx(0.95 * 0.05 * 3)
    assert float(weighting.running[5]) == pytest.approx(0.95 * 0.05 * 4 + 0.05)
    assert float(weighting.running.sum()) == pytest.approx(float(weighting.running[[3, 5]].sum()))


def test_a_first_batch_of_one_step_still_teaches() -> None:
    weighting = focal()
    weighting.update(torch.tensor([1.0, 2.0]), torch.tensor([4, 4]), torch.ones(2))
    assert torch.equal(weighting.weights(torch.tensor([4, 4])), torch.ones(2))


def test_linear_falls_over_the_steps() -> None:
    weighting = TimestepWeighting(TimestepWeightingOptions(kind="linear", gamma=2.0), 20, CPU)
    weights = weighting.weights(torch.arange(20))
    assert float(weights[0]) == 3.0 and float(weights[10]) == 2.0 and bool((weights.diff() < 0).all())


def test_a_share_is_of_what_a_step_loses_of_its_own_output() -> None:
    slots, power = torch.arange(20), torch.logspace(-2, 2, 20)
    relative = focal()
    relative.update(0.1 * power, slots, power)  # every step loses a tenth
    assert torch.allclose(relative.weights(slots), torch.full((20,), (1 - 1 / 20) ** 20))
    absolute = TimestepWeighting(TimestepWeightingOptions(share="absolute"), 20, CPU)
    absolute.update(0.1 * power, slots, power)
    weights = absolute.weights(slots)
    assert float(weights[0]) > 0.99 and float(weights[-1]) < 1e-3
