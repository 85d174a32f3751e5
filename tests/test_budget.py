"""Budgets: how many iterations are taken, and how large the steps become."""

from __future__ import annotations

import pytest

from dmq_fx.budget import DEFAULT_BUDGET, DIVISORS, WHOLE_MODEL, scaled_iterations, scaled_learning_rate
from dmq_fx.errors import InternalError
from dmq_fx.recipe.language import Recipe


def test_iterations_are_those_of_the_papers_under_full() -> None:
    assert [scaled_iterations(6000, budget) for budget in ("full", "standard", "quick")] == [6000, 120, 30]
    assert [scaled_iterations(20_000, budget) for budget in ("full", "standard", "quick")] == [20_000, 400, 100]


def test_training_the_whole_model_is_shortened_less() -> None:
    found = [scaled_iterations(16_000, budget, WHOLE_MODEL) for budget in ("full", "standard", "quick")]
    assert found == [16_000, 1600, 320] and WHOLE_MODEL.keys() == DIVISORS.keys()


def test_at_least_one_iteration_is_taken() -> None:
    assert [scaled_iterations(19, budget) for budget in ("full", "standard", "quick")] == [19, 1, 1]


def test_a_shorter_run_takes_larger_steps_up_to_a_limit() -> None:
    assert scaled_learning_rate(1e-3, 6000, "full", 0.5) == 1e-3
    assert scaled_learning_rate(1e-3, 6000, "standard", 0.5) == pytest.approx(0.05)
    assert scaled_learning_rate(1e-3, 6000, "quick", 0.5) == pytest.approx(0.2)
    assert scaled_learning_rate(1e-3, 6000, "quick", 0.05) == 0.05
    assert scaled_learning_rate(1e-3, 50, "quick", 1.0) == pytest.approx(0.05)  # by the iterations that are left: one


def test_the_limit_lowers_no_learning_rate_of_the_options() -> None:
    assert [scaled_learning_rate(0.3, 6000, budget, 0.1) for budget in DIVISORS] == [0.3] * 3


def test_an_unknown_budget_is_a_fault_of_ours() -> None:
    with pytest.raises(InternalError, match="there is no budget 'fast': recipes take quick, standard, full"):
        scaled_iterations(10, "fast")


def test_the_language_takes_these_budgets() -> None:
    field = Recipe.__dataclass_fields__["budget"]
    assert (field.default, field.metadata["choices"]) == (DEFAULT_BUDGET, tuple(DIVISORS))
