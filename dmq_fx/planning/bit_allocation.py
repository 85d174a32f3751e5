"""Which layer gets how many bits: the least sum of sensitivities under budgets, as an integer linear program.

HAWQ-V3 (Yao et al., arXiv:2011.10680), section 3.4: one binary variable a layer and width, solved exactly by SciPy's
`milp` (HiGHS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dmq_fx.errors import InternalError, RecipeError

TIGHTER = 3e-6
"""What a budget is lowered by, as a share of it, where the solver went over it within its own tolerance (1e-6)."""
TRIES = 8


@dataclass(frozen=True)
class Layer:
    """A weight, what each of its widths costs and what error it makes.

    bits: the widths. error: of each, not negative. costs: by budget, of each width.
    """

    name: str
    bits: tuple[int, ...]
    error: tuple[float, ...]
    costs: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Limit:
    """A budget: what is fixed and the costs of all layers add up to `most` at most.

    unit and divisor are for messages: what is said of the budget is its value over the divisor.
    """

    name: str
    most: float
    unit: str
    fixed: float = 0.0
    divisor: float = 1.0

    def spent(self, layers: Sequence[Layer], chosen: Sequence[int]) -> float:
        """What the layers take with these bits, and all else."""
        costs = (layer.costs[self.name][layer.bits.index(bits)] for layer, bits in zip(layers, chosen, strict=True))
        return self.fixed + sum(costs)


def allocate_bits(layers: Sequence[Layer], limits: Sequence[Limit]) -> tuple[int, ...]:
    """Bits of every layer: those of the least total error whose costs are within all limits, exactly.

    A budget that the cheapest choice fills to less than the solver's tolerance is filled up layer by layer. Raises
    RecipeError if no choice is within the limits.
    """
    for limit in limits:
        least = limit.fixed + sum(min(layer.costs[limit.name]) for layer in layers)
        if least > limit.most:
            raise RecipeError(
                f"the budget {limit.most / limit.divisor:g} {limit.unit} cannot be met: the fewest bits of every site "
                f"take {least / limit.divisor:g}",
                hint="raise the budget, or give the candidates fewer bits",
            )
    slack = 0.0
    for _ in range(TRIES):
        chosen = _solve(layers, limits, slack)
        if chosen is None:
            break
        if all(limit.spent(layers, chosen) <= limit.most for limit in limits):
            return chosen
        slack += TIGHTER
    if (chosen := _near_the_least(layers, limits)) is not None:
        return chosen
    names = " and ".join(f"{limit.most / limit.divisor:g} {limit.unit}" for limit in limits)
    raise RecipeError(
        f"no choice of bits is within the budget {names}",
        hint="raise one of them, or give the candidates fewer bits",
    )


def _near_the_least(layers: Sequence[Layer], limits: Sequence[Limit]) -> tuple[int, ...] | None:
    """The cheapest choice by one of the limits, layers then given what saves most and still fits; None if none does."""
    for limit in limits:
        cheapest = [layer.costs[limit.name].index(min(layer.costs[limit.name])) for layer in layers]
        chosen = [layer.bits[place] for layer, place in zip(layers, cheapest, strict=True)]
        if any(other.spent(layers, chosen) > other.most for other in limits):
            continue
        for place, layer in sorted(enumerate(layers), key=lambda entry: min(entry[1].error) - max(entry[1].error)):
            for bits in sorted(layer.bits, key=lambda width: layer.error[layer.bits.index(width)]):
                tried = [*chosen[:place], bits, *chosen[place + 1 :]]
                if all(other.spent(layers, tried) <= other.most for other in limits):
                    chosen = tried
                    break
        return tuple(chosen)
    return None


def _solve(layers: Sequence[Layer], limits: Sequence[Limit], slack: float) -> tuple[int, ...] | None:
    """Bits of every layer; None if there is no solution."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    ends = np.cumsum([0, *(len(layer.bits) for layer in layers)])
    errors = np.concatenate([np.asarray(layer.error, dtype=float) - min(layer.error) for layer in layers])
    if not np.isfinite(errors).all():
        raise InternalError("a sensitivity is not finite")
    # HiGHS has absolute tolerances: errors are made to be about one, whatever the loss they are of
    errors = errors / max(float(errors.sum()), 1e-300) * len(errors)
    one_each = np.zeros((len(layers), ends[-1]))
    for row in range(len(layers)):
        one_each[row, ends[row] : ends[row + 1]] = 1
    constraints = [LinearConstraint(one_each, 1, 1)]
    for limit in limits:
        room = (limit.most - limit.fixed) * (1 - slack)
        costs = np.concatenate([np.asarray(layer.costs[limit.name], dtype=float) for layer in layers])
        scale = max(abs(room), 1e-300)
        constraints.append(LinearConstraint(costs[None] / scale, -np.inf, room / scale))
    found = milp(
        errors,
        integrality=np.ones(ends[-1]),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    picked = [int(np.argmax(found.x[start:stop])) for start, stop in pairwise(ends)]
    return tuple(layer.bits[place] for layer, place in zip(layers, picked, strict=True))
