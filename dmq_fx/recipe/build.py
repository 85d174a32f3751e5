"""A checked tree in normal form to the language's dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.keys import NONE, Key, is_group, item_type, keys_of, value_type
from dmq_fx.recipe.language import PassSpec, Recipe
from dmq_fx.recipe.tree import Node


def build_recipe(tree: Node, pass_options: Mapping[str, type]) -> Recipe:
    """The recipe that `tree` holds. A ValueError from the `__post_init__` of a pass's options becomes a RecipeError."""
    recipe = build(tree, Recipe, pass_options)
    backend = tree.get("backend")
    return replace(recipe, backend_where=str(backend.where)) if backend else recipe


def build(node: Node, kind: Any, pass_options: Mapping[str, type]) -> Any:
    """The value of `node` as `kind`: a dataclass of the language, a tuple, a dict or a scalar."""
    if kind is PassSpec:
        ((name, options),) = node.items()
        built = build(options, pass_options[name], pass_options)
        return PassSpec(name=name, options=built, where=str(node.where))
    if is_group(kind):
        return _group(node, kind, pass_options)
    if (item := item_type(kind)) is not None:
        return tuple(build(entry, item, pass_options) for entry in node.entries())
    if (value := value_type(kind)) is not None:
        if value is Any:
            return node.plain()
        return {key: build(entry, value, pass_options) for key, entry in node.items()}
    return node.value


def _group(node: Node, kind: type, pass_options: Mapping[str, type]) -> Any:
    values = {
        key.name: _value(given, key, pass_options) for key in keys_of(kind) if (given := node.get(key.name)) is not None
    }
    if any(entry.name == "where" for entry in fields(kind)) and "where" not in values:
        values["where"] = str(node.where)
    try:
        return kind(**values)
    except ValueError as error:
        raise RecipeError(str(error), where=str(node.where)) from None


def _value(node: Node, key: Key, pass_options: Mapping[str, type]) -> Any:
    if key.writes_none and node.value == NONE:
        return None
    return build(node, key.type, pass_options)
