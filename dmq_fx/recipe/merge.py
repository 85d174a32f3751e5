"""`extends`: a child's tree over its parent's, both in normal form without defaults."""

from __future__ import annotations

from dmq_fx.recipe.meaning import CATCH_ALL, match_key
from dmq_fx.recipe.tree import Node

OWN_KEYS = ("dmq", "name", "version", "summary")
"""Keys that a recipe does not inherit."""


def merge_recipes(child: Node, parent: Node) -> Node:
    """The child's recipe with what it takes over from its parent.

    Mappings merge key by key and the child wins. A pass that both list keeps its place in the parent's list, and
    passes of the child alone come after. The child's rules stand before the parent's; parent's rules that can no
    longer apply are left out: those with the match of a child's rule, and all of them after a catch-all.
    """
    merged = child
    for key, theirs in parent.without(*OWN_KEYS).items():
        ours = child.get(key)
        if ours is None:
            node = theirs
        elif key == "rules":
            node = _merge_rules(ours, theirs)
        elif key == "passes":
            node = _merge_passes(ours, theirs)
        else:
            node = _merge_values(ours, theirs)
        merged = merged.with_key(key, node, parent.keys[key])
    return merged


def _merge_values(child: Node, parent: Node) -> Node:
    if not (child.is_mapping and parent.is_mapping):
        return child
    merged = child
    for key, theirs in parent.items():
        ours = child.get(key)
        node = theirs if ours is None else _merge_values(ours, theirs)
        merged = merged.with_key(key, node, parent.keys[key])
    return merged


def _merge_rules(child: Node, parent: Node) -> Node:
    taken = {match_key(rule) for rule in child.entries()}
    left = () if CATCH_ALL in taken else tuple(r for r in parent.entries() if match_key(r) not in taken)
    return Node(child.entries() + left, child.where)


def _merge_passes(child: Node, parent: Node) -> Node:
    ours = {name: entry for entry in child.entries() for name in entry.value}
    theirs = {name: entry for entry in parent.entries() for name in entry.value}
    merged = {name: _merge_values(ours[name], entry) if name in ours else entry for name, entry in theirs.items()}
    return Node(tuple((merged | {name: e for name, e in ours.items() if name not in merged}).values()), child.where)
