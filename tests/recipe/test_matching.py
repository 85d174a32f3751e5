"""The one matcher."""

from __future__ import annotations

import pytest

from dmq_fx.recipe import Match, Rule, first_match, matches
from dmq_fx.recipe.matching import name_matches
from dmq_fx.sites import Site


def site(name: str = "down.0.conv1", op: str = "conv2d", shape: tuple[int, ...] | None = (64, 32, 3, 3)) -> Site:
    roles = ("block_in", "skip_concat")
    return Site(name, op, "node", roles, (0,), "w" if shape else None, None, shape, 0, False)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("down.0.conv1", "down.0.conv1", True),
        ("down.*", "down.0.conv1", True),
        ("*conv1", "down.0.conv1", True),
        ("down.?.conv[12]", "down.0.conv1", True),
        ("down.?.conv[!12]", "down.0.conv1", False),
        ("Down.*", "down.0.conv1", False),
        ("down", "down.0.conv1", False),
        ("down_0_conv1", "down.0.conv1", False),
        (r"re:down\.\d+\.conv1", "down.0.conv1", True),
        (r"re:down", "down.0.conv1", False),
        (r"re:.*conv", "down.0.conv1", False),
        ("*", "", True),
    ],
)
def test_names(pattern: str, name: str, expected: bool) -> None:
    assert name_matches(pattern, name) is expected


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (Match(), True),
        (Match(op=("linear", "conv2d")), True),
        (Match(op=("linear",)), False),
        (Match(role=("first", "block_in")), True),
        (Match(role=("first", "last")), False),
        (Match(name=("up.*", "down.*")), True),
        (Match(name=("up.*",)), False),
        (Match(shape=(64, 32, 3, 3)), True),
        (Match(shape=("*", 32, "*", 3)), True),
        (Match(shape=("*", 33, "*", 3)), False),
        (Match(shape=("*", "*", "*")), False),
        (Match(min_channels=32, max_channels=32), True),
        (Match(min_channels=33), False),
        (Match(max_channels=31), False),
        (Match(op=("conv2d",), role=("block_in",), name=("down.*",), shape=("*",) * 4, min_channels=1), True),
        (Match(op=("conv2d",), role=("block_in",), name=("up.*",)), False),
    ],
)
def test_all_conditions_and_any_of_their_values(match: Match, expected: bool) -> None:
    assert matches(match, site()) is expected


@pytest.mark.parametrize("match", [Match(shape=("*",)), Match(min_channels=1), Match(max_channels=9)])
def test_a_product_of_activations_has_no_shape_and_no_channels(match: Match) -> None:
    assert not matches(match, site(op="attention", shape=None))
    assert matches(Match(op=("attention",)), site(op="attention", shape=None))


def test_the_first_rule_wins() -> None:
    rules = (
        Rule(match=Match(op=("linear",)), scheme="a"),
        Rule(match=Match(role=("block_in",)), scheme="b"),
        Rule(match=Match(), scheme="c"),
    )
    assert first_match(rules, site()) == (1, rules[1])
    assert first_match(rules, site(op="linear")) == (0, rules[0])
    assert first_match(rules[:1], site()) is None
