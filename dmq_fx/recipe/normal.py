"""The normal form of a recipe's tree: short forms written out, and, if asked for, every default too.

The normal form is itself in the recipe language, so it can be checked, overridden and read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dmq_fx.recipe.keys import NONE, Key, is_group, item_type, keys_of, to_plain, union_types, value_type
from dmq_fx.recipe.language import PassSpec, Recipe
from dmq_fx.recipe.tree import Node, from_plain


def write_out(tree: Node, pass_options: Mapping[str, type], kind: type = Recipe) -> Node:
    """`tree` without short forms; what does not fit the language is left as it is, for the checks to find.

    Overlays of a recipe are recipes in part, and are written out too.
    """
    written = _Normalizer(pass_options, defaults=False).value(tree, kind)
    overlays = written.get("overlays")
    if kind is not Recipe or overlays is None or not overlays.is_list:
        return written
    changed = Node(tuple(write_out(entry, pass_options) for entry in overlays.entries()), overlays.where)
    return written.with_key("overlays", changed, overlays.where)


def fill_in(tree: Node, pass_options: Mapping[str, type]) -> Node:
    """A valid `tree` without short forms and with every default, keys in the order of the language."""
    return _Normalizer(pass_options, defaults=True).value(tree, Recipe)


class _Normalizer:
    def __init__(self, pass_options: Mapping[str, type], *, defaults: bool) -> None:
        self._pass_options = pass_options
        self._defaults = defaults

    def value(self, node: Node, kind: Any) -> Node:
        if kind is PassSpec:
            return self._pass(node)
        if is_group(kind):
            return self._group(node, kind)
        if (item := item_type(kind)) is not None:
            entries = (replace(node),) if item is str and isinstance(node.value, str) else node.entries()
            changed = tuple(self.value(entry, item) for entry in entries)
            return Node(changed, node.where) if node.is_list or entries else node
        if (value := value_type(kind)) is not None:
            if not node.is_mapping:
                return node
            return replace(node, value={key: self.value(item, value) for key, item in node.items()})
        return _scalar(node, union_types(kind))

    def _group(self, node: Node, kind: type) -> Node:
        if not node.is_mapping:
            return node
        value: dict[str, Node] = {}
        for key in keys_of(kind):
            given = node.get(key.name)
            if given is not None:
                value[key.name] = self._key(given, key)
            elif self._defaults and not key.required and not key.omit:
                value[key.name] = from_plain(to_plain(key.default), node.where)
        value |= {key: item for key, item in node.items() if key not in value}
        return replace(node, value=value, keys={key: node.keys.get(key, node.where) for key in value})

    def _key(self, node: Node, key: Key) -> Node:
        return node if key.writes_none and node.value == NONE else self.value(node, key.type)

    def _pass(self, node: Node) -> Node:
        if isinstance(node.value, str):
            options = Node({}, node.where)
            node = Node({node.value: options}, node.where, {node.value: node.where})
        known = {
            name: self.value(options, self._pass_options[name]) if name in self._pass_options else options
            for name, options in node.items()
        }
        return replace(node, value=known) if node.is_mapping else node


def _scalar(node: Node, kinds: tuple[Any, ...]) -> Node:
    """One way to write a number: integers for int, floats for float."""
    if isinstance(node.value, float) and int in kinds and float not in kinds and node.value.is_integer():
        return replace(node, value=int(node.value))
    if isinstance(node.value, int) and not isinstance(node.value, bool) and float in kinds and int not in kinds:
        return replace(node, value=float(node.value))
    return node
