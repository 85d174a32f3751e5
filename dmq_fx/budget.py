"""The budget of a recipe: how much of the iterations that learned passes ask for is spent."""

from __future__ import annotations

from collections.abc import Mapping

from dmq_fx.errors import InternalError

DIVISORS = {"quick": 200, "standard": 50, "full": 1}
"""Each budget by what it divides iterations by. `full` is as the options say, whose defaults are the papers'."""

WHOLE_MODEL = {"quick": 50, "standard": 10, "full": 1}
"""The same for passes that train the whole model at once: they learn from one sampler step at a time, with rates that
cannot be raised as far as those of a layer's own loss."""

DEFAULT_BUDGET = "standard"


def scaled_iterations(iterations: int, budget: str, divisors: Mapping[str, int] = DIVISORS) -> int:
    """How many of `iterations` a learned pass takes under `budget`: 1, 1/50 or 1/200 of them, and at least 1."""
    return max(1, iterations // _divisor(budget, divisors))


def scaled_learning_rate(learning_rate: float, iterations: int, budget: str, limit: float) -> float:
    """The learning rate with which the scaled iterations can go as far as `iterations` with `learning_rate`.

    A run of a fiftieth of the iterations takes steps that are fifty times as large, but none larger than `limit`.
    The limit bounds the enlargement only: under `full` a learning rate is taken as it is.
    """
    enlarged = learning_rate * iterations / scaled_iterations(iterations, budget)
    return max(learning_rate, min(enlarged, limit))


def _divisor(budget: str, divisors: Mapping[str, int]) -> int:
    if budget not in divisors:
        raise InternalError(f"there is no budget {budget!r}: recipes take {', '.join(divisors)}")
    return divisors[budget]
