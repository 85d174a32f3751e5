"""Check a tree's shape by JSON Schema, and say in our own words what does not fit, where, and what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from dmq_fx.errors import did_you_mean
from dmq_fx.recipe.language import LANGUAGE_VERSIONS
from dmq_fx.recipe.problems import Problem
from dmq_fx.recipe.source import describe, shorten
from dmq_fx.recipe.tree import Node

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_TYPE_WORDS = {
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "array": "a list",
    "object": "a mapping",
}
_SECOND = ("params", "overlays", "before", "after")
"""Keys that came with version 2 of the language; `name` of a rule did, too."""
_NEWER = "it came with version 2 of the language: `dmq recipe migrate FILE` writes a file in it"
_FORMS = {
    "name": "must be of the form family/name (letters, digits, '.', '_' and '-')",
    "version": "must be a semantic version such as 1.0.0",
    "params": "the name of a parameter is made of letters, digits and '_'",
    "before": "must be the name of a rule (letters, digits, '_' and '-')",
    "after": "must be the name of a rule (letters, digits, '_' and '-')",
    "schemes": "the name of a scheme is made of letters, digits, '_', '+' and '-'",
}


@cache
def _validator() -> Any:
    """The validator's class; jsonschema is imported when a recipe is checked, not with the language."""
    from jsonschema import Draft202012Validator, validators
    from jsonschema.exceptions import ValidationError

    def whole_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
        # jsonschema searches, and Python's $ lets a newline through
        if isinstance(instance, str) and not re.fullmatch(pattern, instance):
            yield ValidationError(f"does not match {pattern}")

    return validators.extend(Draft202012Validator, {"pattern": whole_pattern})


def shape_problems(tree: Node, schema: Mapping[str, Any]) -> list[Problem]:
    """What in `tree` does not fit `schema`; at most one wrong type a value, and every unknown or missing key."""
    errors = [leaf for error in _validator()(schema).iter_errors(tree.plain()) for leaf in _leaves(error)]
    wrong_type = {tuple(error.absolute_path) for error in errors if error.validator in ("type", "anyOf")}
    found: list[Problem] = []
    for error in errors:
        if error.validator in ("type", "anyOf") or tuple(error.absolute_path) not in wrong_type:
            found += _explain(error, tree)
    return found


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """The errors of the one alternative that fits the value's type, else the error itself."""
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.relative_schema_path[0], []).append(inner)
    fitting = [inner for inner in branches.values() if not any(map(_excludes, inner))]
    if len(fitting) != 1:
        yield error
        return
    for inner in fitting[0]:
        yield from _leaves(inner)


def _excludes(error: ValidationError) -> bool:
    """`error` says that the value is of another kind altogether than its alternative."""
    if error.relative_path:
        return False
    choices: Any = error.validator_value
    single = error.validator == "enum" and len(choices) == 1
    nested = error.validator == "anyOf" and all(map(_excludes, error.context or ()))
    return error.validator in ("type", "const") or single or nested


def _explain(error: ValidationError, tree: Node) -> Iterator[Problem]:
    path = list(error.absolute_path)
    node = tree.at(path)
    schema: Any = error.schema
    if "propertyNames" in error.absolute_schema_path:
        name: Any = error.instance
        form = _FORMS.get(_word(path), f"a key of {_word(path)} must match {schema['pattern']}")
        yield Problem(node.keys[name], f"{form}, got {shorten(name)}")
    elif error.validator == "additionalProperties":
        yield from _unknown_keys(node, path, list(schema["properties"]))
    elif error.validator == "required":
        for key in schema["required"]:
            if key not in node.value:
                yield Problem(node.where, f"missing key {key!r}{_inside(path)}")
    elif error.validator == "enum":
        yield _unknown_choice(node, path, list(schema["enum"]))
    elif error.validator in ("type", "anyOf"):
        message = f"{_subject(path)} must be {_expected(schema)}, got {describe(node.value)}"
        newer = path == ["extends"] and node.is_list
        hint = f"several parents: {_NEWER}" if newer else _type_hint(node.value, schema)
        yield Problem(node.where, message, hint)
    elif error.validator == "minProperties" and path[-1:] == ["when"]:
        yield Problem(node.where, "an overlay for every model has no conditions", "give `when:` some, or leave it out")
    elif error.validator in ("minProperties", "maxProperties"):
        names = ", ".join(node.value) or "none"
        hint = "put each pass on a line of its own: `- name: {options}`"
        yield Problem(node.where, f"an entry of passes names one pass, got {names}", hint)
    elif error.validator == "pattern":
        named = "before" if path[:1] == ["rules"] else _word(path)
        form = _FORMS.get(named, f"must match {schema['pattern']}")
        yield Problem(node.where, f"{_subject(path)} {form}, got {shorten(node.value)}")
    elif error.validator == "not":  # the bare name of a pass
        yield Problem(node.where, f"the pass {node.value!r} needs options", f"write `{node.value}: {{...}}`")
    elif error.validator in ("minItems", "minLength"):
        yield Problem(node.where, f"{_subject(path)} is empty", "leave the key out")
    else:
        yield Problem(node.where, f"{_subject(path)} must be {_range(schema)}, got {node.value}")


def _unknown_keys(node: Node, path: list[Any], known: list[str]) -> Iterator[Problem]:
    noun = "pass" if _is_pass_entry(path) else "metric" if path == ["expect"] else "key"
    for key in node.value:
        if key not in known:
            hint = did_you_mean(key, known) or f"known: {', '.join(known)}"
            if key in _SECOND or (key == "name" and path[:1] == ["rules"]):
                hint = _NEWER
            inside = "" if noun == "pass" else _inside(path)
            yield Problem(node.keys[key], f"unknown {noun} {shorten(key)}{inside}", hint)


def _unknown_choice(node: Node, path: list[Any], known: list[Any]) -> Problem:
    if path == ["dmq"]:
        reads = f"versions {LANGUAGE_VERSIONS[0]} to {LANGUAGE_VERSIONS[-1]}"
        message = f"this is version {node.value} of the recipe language, and this dmq reads {reads}"
        return Problem(node.where, message, "update dmq, or write the recipe in the older version")
    if not isinstance(node.value, str):
        return Problem(node.where, f"{_subject(path)} must be {_one_of(known)}, got {node.value}")
    noun = "pass" if _is_pass_entry(path) else _word(path)
    hint = did_you_mean(node.value, known) or f"known: {', '.join(known)}"
    return Problem(node.where, f"unknown {noun} {shorten(node.value)}", hint)


def _is_pass_entry(path: list[Any]) -> bool:
    return len(path) == 2 and path[0] == "passes"


def _word(path: list[Any]) -> str:
    """The last key of a path."""
    return next((step for step in reversed(path) if isinstance(step, str)), "the recipe")


def _subject(path: list[Any]) -> str:
    in_list = bool(path) and isinstance(path[-1], int)
    return f"an entry of {_word(path)}" if in_list else _word(path)


def _inside(path: list[Any]) -> str:
    """` in schemes.w4.weight`; the entries of the pass list go by their names."""
    steps = path[:1] + path[2:] if path[:1] == ["passes"] and len(path) > 2 else path
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return f" in {text[1:]}" if text else ""


def _one_of(choices: list[Any]) -> str:
    return " or ".join(str(choice) for choice in choices)


def _expected(schema: Mapping[str, Any]) -> str:
    """What a schema takes, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_expected(one) for one in schema["anyOf"]))
    if "const" in schema or len(schema.get("enum", ())) == 1:
        return repr(schema.get("const", schema.get("enum", [None])[0]))
    return _TYPE_WORDS[schema["type"]]


def _type_hint(value: Any, schema: Mapping[str, Any]) -> str | None:
    kinds = [one.get("type") for one in schema.get("anyOf", [schema])]
    if set(kinds) <= {"string", "array"} and isinstance(value, (bool, int, float)):
        return "put it in quotes to make it a string"
    if value is None:
        return "an empty value is nothing; write `none` or `{}`, or leave the key out"
    return None


def _range(schema: Mapping[str, Any]) -> str:
    """The bounds of a number, in words."""
    if "minimum" in schema and "maximum" in schema:
        return f"between {schema['minimum']} and {schema['maximum']}"
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "greater than",
        "exclusiveMaximum": "less than",
        "maximum": "at most",
    }
    return " and ".join(f"{word} {schema[name]}" for name, word in words.items() if name in schema)
