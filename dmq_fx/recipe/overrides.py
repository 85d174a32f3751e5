"""`--set key.path=value`: change one value of a resolved recipe."""

from __future__ import annotations

from collections.abc import Iterable

from dmq_fx.errors import RecipeError, did_you_mean
from dmq_fx.recipe.keys import NONE
from dmq_fx.recipe.meaning import OVERRIDE
from dmq_fx.recipe.tree import Node, Position
from dmq_fx.recipe.yaml_reader import read_value

_FILE_ONLY = ("extends", "lock", "params", "overlays")


def apply_override(tree: Node, override: str) -> Node:
    """`tree` (in normal form, defaults written out) with one value replaced by `override`, as `key.path=value`.

    Schemes, passes and rules with a name are addressed by it, other rules by their number from 0. The new value is
    placed at `--set key.path=value`; the caller checks the recipe again.
    """
    where = Position(f"{OVERRIDE}{override}")
    path, equals, text = override.partition("=")
    steps = path.strip().split(".")
    if not equals or not all(steps):
        hint = "write `--set key.path=value`, such as `--set calibration.samples=32`"
        raise RecipeError("not of the form key.path=value", where=str(where), hint=hint)
    if steps[0] in _FILE_ONLY:
        raise RecipeError(f"{steps[0]!r} belongs to a file and cannot be overridden", where=str(where))
    value = read_value(text, str(where))
    if value is None or (value.value is None and not text.strip()):
        raise RecipeError(f"no value for {path!r}", where=str(where), hint="write `none` for no value")
    return _set(tree, steps, value, where, done=())


def _set(node: Node, steps: list[str], value: Node, where: Position, done: tuple[str, ...]) -> Node:
    if not steps:
        return value
    step, rest, here = steps[0], steps[1:], (*done, steps[0])
    if node.is_list:
        index = _index(node, step, where, done)
        if done == ("passes",):
            changed = Node({step: _set(node.at([index, step]), rest, value, where, here)}, where, {step: where})
        else:
            changed = _set(node.at([index]), rest, value, where, here)
        return Node((*node.value[:index], changed, *node.value[index + 1 :]), node.where)
    if not node.is_mapping:
        raise _not_a_mapping(node, step, where, done)
    if done == ("schemes",) and step not in node.value:
        raise _unknown("scheme", step, node.value, where)
    missing = Node({}, where)  # a key that the language does not know is found by the check that follows
    return node.with_key(step, _set(node.get(step) or missing, rest, value, where, here), where)


def _index(node: Node, step: str, where: Position, done: tuple[str, ...]) -> int:
    """Position in a list that `step` stands for: a pass's name, or a number."""
    if done == ("passes",):
        names = [name for entry in node.entries() for name in entry.value]
        if step not in names:
            raise _unknown("pass", step, names, where)
        return names.index(step)
    named = [place for place, entry in enumerate(node.entries()) if done == ("rules",) and _is_named(entry, step)]
    if named:
        return named[0]
    path, size = ".".join(done), len(node.entries())
    if not (step.isascii() and step.isdigit() and len(step) < 9 and int(step) < size):
        known = f"0 to {size - 1}" if size else "it is empty"
        raise RecipeError(f"{path} has no entry {step!r}", where=str(where), hint=f"entries are numbered: {known}")
    return int(step)


def _is_named(rule: Node, name: str) -> bool:
    found = rule.get("name")
    return found is not None and found.value == name


def _unknown(kind: str, name: str, known: Iterable[str], where: Position) -> RecipeError:
    hint = did_you_mean(name, known) or f"this recipe has: {', '.join(known) or 'none'}"
    return RecipeError(f"this recipe has no {kind} {name!r}", where=str(where), hint=hint)


def _not_a_mapping(node: Node, step: str, where: Position, done: tuple[str, ...]) -> RecipeError:
    path = ".".join(done)
    hint = f"give it a whole value: `--set '{path}={{{step}: ...}}'`" if node.value == NONE else None
    return RecipeError(f"{path} is {node.value!r} and has no key {step!r}", where=str(where), hint=hint)
