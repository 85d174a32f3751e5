"""The integer linear program: least error, within budgets exactly."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmq_fx.errors import RecipeError
from dmq_fx.planning.bit_allocation import Layer, Limit, allocate_bits

BITS = (2, 3, 4)


def layers(sizes, errors, slow=()):
    """A layer of every size, with an error for each of `BITS`, and two costs."""
    return [
        Layer(
            f"l{place}",
            BITS,
            error,
            {
                "bits": tuple(float(size * bits) for bits in BITS),
                "time": tuple(float(bits**2 * (place + 1)) for bits in BITS),
            },
        )
        for place, (size, error) in enumerate(zip(sizes, errors, strict=True))
    ]


def total(found, chosen):
    return sum(layer.error[layer.bits.index(bits)] for layer, bits in zip(found, chosen, strict=True))


@st.composite
def problems(draw):
    count = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count))
    exponent = draw(st.integers(-12, 6))
    errors = [tuple(sorted(draw(st.lists(st.integers(0, 1000), min_size=3, max_size=3)), reverse=True)) for _ in sizes]
    found = layers(sizes, [tuple(e * 10.0**exponent for e in error) for error in errors])
    share, times = draw(st.floats(2.0, 4.0)), draw(st.integers(0, 12 * count * (count + 1) // 2))
    limits = [Limit("bits", share * sum(sizes), "bits", divisor=sum(sizes))]
    if draw(st.booleans()):
        limits.append(Limit("time", 4.0 * count * (count + 1) / 2 + times, "ms"))
    return found, limits


@given(problems())
@settings(max_examples=40, deadline=None)
def test_no_choice_within_the_budgets_is_better(problem):
    found, limits = problem
    chosen = allocate_bits(found, limits)
    assert all(limit.spent(found, chosen) <= limit.most for limit in limits)
    allowed = [
        picked
        for picked in product(BITS, repeat=len(found))
        if all(limit.spent(found, picked) <= limit.most for limit in limits)
    ]
    best = min(total(found, picked) for picked in allowed)
    assert total(found, chosen) <= best + 1e-5 * sum(max(layer.error) for layer in found)


def test_more_to_spend_is_never_worse():
    found = layers([7, 100, 31, 64], [(9, 3, 1), (40, 20, 2), (5, 4, 1), (90, 10, 3)])
    budgets = [Limit("bits", bits / 10 * 202, "bits") for bits in range(20, 41)]
    errors = [total(found, allocate_bits(found, [budget])) for budget in budgets]
    assert errors == sorted(errors, reverse=True)
    assert allocate_bits(found, budgets[-1:]) == (4, 4, 4, 4) and allocate_bits(found, budgets[:1]) == (2, 2, 2, 2)


def test_a_budget_that_cannot_be_met():
    found = layers([10, 20], [(1, 0, 0), (1, 0, 0)])
    with pytest.raises(RecipeError, match=r"the budget 1\.9 bits a weight cannot be met: .* take 2") as error:
        allocate_bits(found, [Limit("bits", 57.0, "bits a weight", divisor=30)])
    assert "raise the budget" in error.value.hint
    with pytest.raises(RecipeError, match="the budget 100 B cannot be met: the fewest bits of every site take 150"):
        allocate_bits(found, [Limit("bits", 100.0, "B", fixed=90.0)])


@pytest.mark.parametrize(("most", "expected"), [(2e9 + 200, (2, 2)), (2e9 + 300, (2, 3)), (2e9 + 399, (2, 3))])
def test_a_budget_within_the_solvers_tolerance_of_the_least(most, expected):
    found = layers([10**9, 100], [(9, 3, 1), (4, 2, 1)])
    assert allocate_bits(found, [Limit("bits", most, "bits")]) == expected


def test_what_is_fixed_counts():
    found = layers([10, 20], [(1, 0.5, 0), (4, 2, 0)])
    assert allocate_bits(found, [Limit("bits", 200.0, "B", fixed=100.0)]) == (2, 4)
