"""`params:` and `${...}`: values that a recipe leaves open, put in before it is checked.

Only what a recipe declares can be named: there is no environment, no file and no arithmetic behind `${...}`. A text
that is one `${name}` becomes the typed value; inside a longer text the value is written out; `$${` is the text `${`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dmq_fx.errors import RecipeError, did_you_mean
from dmq_fx.recipe.language import PARAM_NAME
from dmq_fx.recipe.problems import Problem, raise_problems
from dmq_fx.recipe.source import describe
from dmq_fx.recipe.tree import Node, Position
from dmq_fx.recipe.yaml_reader import read_value

FIXED_KEYS = ("dmq", "name", "version", "extends", "params", "lock")
"""Keys that say what a file is, and so hold no parameters."""

_PLACEHOLDER = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_KINDS = {"integer": int, "number": float, "boolean": bool, "string": str}

Scalar = bool | int | float | str


def has_placeholders(tree: Node) -> bool:
    """`${` stands in a text of `tree`, outside of the keys that say what it is."""
    return any(_mentions(node) for key, node in tree.items() if key not in FIXED_KEYS)


def param_values(params: Node | None, given: Sequence[str]) -> dict[str, Scalar]:
    """The value of every parameter that `params` (merged over all files) declares: the given one, or its default.

    given: `name=value` texts of the command line; the last one of a name counts. Raises RecipeError.
    """
    declared = dict(params.items()) if params else {}
    chosen: dict[str, Node] = {}
    for text in given:
        name, value = _given(text, declared)
        chosen[name] = value
    values: dict[str, Scalar] = {}
    problems: list[Problem] = []
    for name, node in declared.items():
        default = node.get("default")
        if default is None:
            hint = "give it `default:`, so that the recipe can be checked as it is"
            problems.append(Problem(node.where, f"the parameter {name!r} has no default", hint))
            continue
        kind = kind_of(node)
        for source in (default, chosen.get(name, default)):
            found = _typed(source, kind)
            values[name] = source.value if found is None else found
            message = (
                f"must be {_article(kind)}, got {describe(source.value)}" if found is None else _limit(node, found)
            )
            if message:
                problems.append(Problem(source.where, f"the parameter {name!r} {message}"))
    raise_problems(problems, str(params.where.file) if params else "-p")
    return values


def kind_of(param: Node) -> str:
    """The `type:` of a parameter, or that of its default."""
    given, default = param.get("type"), param.get("default")
    if given:
        return given.value
    value = default.value if default else ""
    return next(name for name in ("boolean", "integer", "number", "string") if isinstance(value, _KINDS[name]))


def substitute(tree: Node, values: Mapping[str, Scalar]) -> Node:
    """`tree` with every `${name}` replaced by its value. Raises RecipeError for names that `values` does not have."""
    problems: list[Problem] = []
    changed = {
        key: node if key in FIXED_KEYS else _substitute(node, values, problems, key) for key, node in tree.items()
    }
    raise_problems(problems, tree.where.file)
    return replace(tree, value=changed)


def escape(value: Any) -> Any:
    """Plain data whose texts, read as a recipe again, mean what they are."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, Mapping):
        return {key: escape(item) for key, item in value.items()}
    return [escape(item) for item in value] if isinstance(value, list) else value


def _mentions(node: Node) -> bool:
    if isinstance(node.value, str):
        return "${" in node.value
    inner = node.entries() or tuple(item for _, item in node.items())
    return any(map(_mentions, inner))


def _substitute(node: Node, values: Mapping[str, Scalar], problems: list[Problem], key: str) -> Node:
    if node.is_mapping:
        # the conditions of an overlay are about the model, not about the recipe
        return replace(
            node,
            value={
                name: item if (key, name) == ("overlays", "when") else _substitute(item, values, problems, key)
                for name, item in node.items()
            },
        )
    if node.is_list:
        return Node(tuple(_substitute(item, values, problems, key) for item in node.entries()), node.where)
    if not isinstance(node.value, str) or "${" not in node.value:
        return node

    def value_of(match: re.Match[str]) -> Scalar | None:
        """None for the escape."""
        if match[0] == "$${":
            return None
        name, closed = match[1], match[2]
        if name in values and closed:
            return values[name]
        problems.append(Problem(node.where, *_unknown(name if closed else None, values)))
        return ""

    whole = _PLACEHOLDER.fullmatch(node.value)
    if whole and whole[0] != "$${":
        return Node(value_of(whole), node.where)
    return Node(_PLACEHOLDER.sub(lambda match: _text(value_of(match)), node.value), node.where)


def _text(value: Scalar | None) -> str:
    if value is None:
        return "${"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(name: str | None, values: Mapping[str, Scalar]) -> tuple[str, str]:
    literal = "write $${ for the text itself"
    if name is None:
        return "a `${` without its `}`", literal
    if not re.fullmatch(PARAM_NAME, name):
        return f"`${{{name[:40]}}}` is not the name of a parameter", f"there are no expressions; {literal}"
    hint = did_you_mean(name, values) or (f"declared: {', '.join(values)}" if values else "declare it under `params:`")
    return f"unknown parameter {name!r}", f"{hint}; {literal}"


def _given(text: str, declared: Mapping[str, Node]) -> tuple[str, Node]:
    where = Position(f"-p {text}")
    name, equals, value_text = text.partition("=")
    name = name.strip()
    if not equals or not name:
        hint = "write `-p name=value`, such as `-p w_bits=4`"
        raise RecipeError("not of the form name=value", where=str(where), hint=hint)
    if name not in declared:
        known = f"it has: {', '.join(declared)}" if declared else "it declares none; --set changes any key"
        raise RecipeError(
            f"the recipe has no parameter {name!r}", where=str(where), hint=did_you_mean(name, declared) or known
        )
    if kind_of(declared[name]) == "string":
        return name, Node(value_text, where)
    value = read_value(value_text, str(where))
    if value is None or value.value is None:
        raise RecipeError(f"no value for {name!r}", where=str(where))
    return name, Node(value.value, where)


def _typed(node: Node, kind: str) -> Scalar | None:
    """The value as `kind`, None if it is of another."""
    value = node.value
    if isinstance(value, bool) or kind == "boolean":
        return value if isinstance(value, bool) and kind == "boolean" else None
    if kind == "number" and isinstance(value, (int, float)):
        return float(value)
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, _KINDS[kind]) else None


def _limit(param: Node, value: Scalar) -> str | None:
    """What the limits of a parameter say against `value`."""
    choices = [entry.value for entry in (param.get("choices") or Node((), param.where)).entries()]
    if choices and value not in choices:
        return f"must be one of {', '.join(map(str, choices))}, got {value}"
    low, high = param.get("minimum"), param.get("maximum")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if low and value < low.value:
            return f"must be at least {low.value}, got {value}"
        if high and value > high.value:
            return f"must be at most {high.value}, got {value}"
    return None


def _article(kind: str) -> str:
    return {"integer": "an integer", "boolean": "true or false"}.get(kind, f"a {kind}")
