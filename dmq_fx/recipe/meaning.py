"""What JSON Schema cannot say: names that refer to something, patterns that compile, limits in order.

All checks work on trees in normal form, and step over what has the wrong shape (that is reported elsewhere).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields

from dmq_fx.errors import did_you_mean
from dmq_fx.recipe.keys import NONE
from dmq_fx.recipe.language import ActivationSpec, WeightSpec
from dmq_fx.recipe.matching import REGEX_PREFIX
from dmq_fx.recipe.problems import Problem
from dmq_fx.recipe.tree import Node, Position

OVERRIDE = "--set "
"""What the place of an overridden value begins with."""

MEANT_FOR = {
    "group_size": ("granularity", "per_group"),
    "percentile": ("range", "percentile"),
    "momentum": ("range", "ema_minmax"),
}
"""Options of a precision that mean something with one choice of another option alone."""

PLACES = ("before", "after")
"""Keys of a rule that say where it stands among the parent's; a merge takes them off."""

CATCH_ALL = "{}"
"""`match_key` of a rule that takes every site."""


def value_problems(tree: Node) -> Iterator[Problem]:
    """Problems that a file has by itself, whatever it extends."""
    yield from _repeated_passes(tree)
    rules = _list(tree, "rules")
    for rule in rules:
        yield from _match(rule)
    yield from _unreachable(rules)
    for overlay in _list(tree, "overlays"):
        yield from value_problems(overlay)


def file_problems(tree: Node) -> Iterator[Problem]:
    """Problems of what only a file can say: names and places of its rules."""
    yield from _named_rules(_list(tree, "rules"))
    for overlay in _list(tree, "overlays"):
        yield from _named_rules(_list(overlay, "rules"))
        when = overlay.get("when")
        low, high = (when.get(key) if when else None for key in ("min_parameters", "max_parameters"))
        if low and high and isinstance(low.value, int) and isinstance(high.value, int) and low.value > high.value:
            yield Problem(low.where, f"min_parameters {low.value} is more than max_parameters {high.value}")


def reference_problems(tree: Node) -> Iterator[Problem]:
    """Problems of a recipe as a whole, after its parents were merged in."""
    schemes = _get(tree, "schemes")
    names = [name for name, _ in schemes.items()] if schemes else []
    passes = [name for entry in _list(tree, "passes") for name, _ in entry.items()]
    rules = tree.get("rules")
    if rules is None or rules.value == ():
        where = rules.where if rules else tree.where
        yield Problem(where, "the recipe has no rules", "add `rules:`, such as `- {match: {op: linear}, scheme: w8}`")
    if schemes:
        yield from _schemes(schemes)
    for rule in _list(tree, "rules"):
        yield from _scheme_reference(rule, names)
        yield from _pass_references(rule, passes)
    expect = _get(tree, "expect")
    for name, gate in expect.items() if expect else ():
        yield from _gate(name, gate)


def unused_options(tree: Node, file: str) -> dict[tuple[Position, str], Problem]:
    """Options of schemes that do nothing beside the others: written in `file`, for a choice that is not made.

    By place and name. What a parent wrote for its own choice is left, and so is a precision that is written out whole.
    """
    found = {}
    schemes = _get(tree, "schemes")
    halves = [
        (spec, kind)
        for _, scheme in (schemes.items() if schemes else ())
        for half, kind in (("weight", WeightSpec), ("activation", ActivationSpec))
        if (spec := scheme.get(half)) is not None and spec.is_mapping
    ]
    for spec, kind in halves:
        defaults = {field.name: field.default for field in fields(kind)}
        whole = set(defaults) <= {name for name, node in spec.items() if not node.where.file.startswith(OVERRIDE)}
        for name, (choice, wanted) in MEANT_FOR.items():
            node, chosen = spec.get(name), spec.get(choice)
            value = chosen.value if chosen else defaults[choice]
            if node is None or value == wanted or whole or node.where.file != file:
                continue
            message = f"{name} is for `{choice}: {wanted}`, and {choice} is {value}"
            hint = f"add `{choice}: {wanted}`, or leave {name} out"
            found[node.where, name] = Problem(node.where, message, hint)
    return found


def _get(tree: Node, key: str) -> Node | None:
    node = tree.get(key)
    return node if node and node.is_mapping else None


def _list(tree: Node, key: str) -> tuple[Node, ...]:
    node = tree.get(key)
    return node.entries() if node else ()


def _place(node: Node, seen_from: Node) -> str:
    same_file = node.where.line and node.where.file == seen_from.where.file
    return f"line {node.where.line}" if same_file else str(node.where)


def _repeated_passes(tree: Node) -> Iterator[Problem]:
    first: dict[str, Node] = {}
    for entry in _list(tree, "passes"):
        for name, _ in entry.items():
            if name in first:
                message = f"the pass {name!r} is listed twice (first at {_place(first[name], entry)})"
                yield Problem(entry.where, message, "a pass runs once")
            first.setdefault(name, entry)


def _match(rule: Node) -> Iterator[Problem]:
    match = _get(rule, "match")
    if match is None:
        return
    for pattern in _list(match, "name"):
        if isinstance(pattern.value, str) and pattern.value.startswith(REGEX_PREFIX):
            try:
                re.compile(pattern.value.removeprefix(REGEX_PREFIX))
            except (re.error, OverflowError, RecursionError) as error:
                yield Problem(pattern.where, f"{pattern.value!r} is not a regular expression: {error}")
    low, high = match.get("min_channels"), match.get("max_channels")
    if low and high and isinstance(low.value, int) and isinstance(high.value, int) and low.value > high.value:
        yield Problem(low.where, f"min_channels {low.value} is more than max_channels {high.value}")


def _unreachable(rules: tuple[Node, ...]) -> Iterator[Problem]:
    taken: dict[str, Node] = {}
    for rule in rules:
        key = match_key(rule)
        before = taken.get(CATCH_ALL) or taken.get(key)
        if before is not None and rule.is_mapping and not any(rule.get(place) for place in PLACES):
            what = "every site" if match_key(before) == CATCH_ALL else "the same sites"
            message = f"this rule never applies: the rule at {_place(before, rule)} takes {what}"
            yield Problem(rule.where, message, "the first rule that matches wins: put the narrower rule first")
        if rule.is_mapping and not any(rule.get(place) for place in PLACES):
            taken.setdefault(key, rule)


def _named_rules(rules: tuple[Node, ...]) -> Iterator[Problem]:
    first: dict[str, Node] = {}
    for rule in rules:
        name, before, after = (rule.get(key) for key in ("name", "before", "after"))
        if before and after:
            yield Problem(after.where, "a rule stands before or after another one, not both", "keep one of the two")
        if name and isinstance(name.value, str):
            if name.value in first:
                message = f"two rules are named {name.value!r} (first at {_place(first[name.value], name)})"
                yield Problem(name.where, message, "a name belongs to one rule")
            first.setdefault(name.value, name)


def match_key(rule: Node) -> str:
    """The same text for two rules that take the same sites because their matches are written the same."""
    match = rule.get("match")
    return json.dumps(match.plain(), sort_keys=True) if match else CATCH_ALL


def _schemes(schemes: Node) -> Iterator[Problem]:
    for name, scheme in schemes.items():
        if name == NONE:
            message = "a scheme cannot be called 'none': that word means full precision"
            yield Problem(schemes.keys[name], message)
        halves = [scheme.get("weight"), scheme.get("activation")]
        if scheme.is_mapping and all(half is None or half.value == NONE for half in halves):
            hint = "give it `weight:` or `activation:`; for full precision a rule says `scheme: none`"
            yield Problem(scheme.where, f"the scheme {name!r} quantizes nothing", hint)


def _scheme_reference(rule: Node, names: list[str]) -> Iterator[Problem]:
    node = rule.get("scheme")
    if node and isinstance(node.value, str) and node.value not in (*names, NONE):
        hint = did_you_mean(node.value, names) or f"known: {', '.join([*names, NONE])}"
        yield Problem(node.where, f"unknown scheme {node.value!r}", hint)


def _pass_references(rule: Node, passes: list[str]) -> Iterator[Problem]:
    for node in _list(rule, "passes"):
        if isinstance(node.value, str) and node.value not in passes:
            listed = ", ".join(passes) or "none"
            hint = did_you_mean(node.value, passes) or f"add it to `passes:` of the recipe (listed: {listed})"
            yield Problem(node.where, f"the pass {node.value!r} is not in the recipe's list of passes", hint)


def _gate(name: str, gate: Node) -> Iterator[Problem]:
    if not gate.is_mapping:
        return
    low, high = (limit.value if (limit := gate.get(key)) else NONE for key in ("min", "max"))
    if low == NONE and high == NONE:
        yield Problem(gate.where, f"the gate {name!r} has no limit", "give it `min:` or `max:`")
    numbers = (int, float)
    if isinstance(low, numbers) and isinstance(high, numbers) and low > high:
        yield Problem(gate.where, f"the gate {name!r} cannot be met: min {low} is more than max {high}")
