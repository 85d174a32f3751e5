"""`extends`: a child's tree over its parent's, both in normal form without defaults."""

from __future__ import annotations

from dmq_fx.errors import RecipeError, did_you_mean
from dmq_fx.recipe.meaning import CATCH_ALL, PLACES, match_key
from dmq_fx.recipe.tree import Node

OWN_KEYS = ("dmq", "name", "version", "summary")
"""Keys that a recipe does not inherit."""


def merge_recipes(child: Node, parent: Node) -> Node:
    """The child's recipe with what it takes over from its parent.

    Mappings merge key by key and the child wins. A pass that both list keeps its place in the parent's list, and
    passes of the child alone come after. The child's rules stand before the parent's, unless they say `before` or
    `after` which one, or have the name of one, whose place they take; parent's rules that can no longer apply are left
    out: those that come after a child's rule with their match, or after a catch-all.

    Merging is associative (a grandchild over a child, over a parent) where no rule has a name or a place and no
    mapping stands over a `none`. Raises RecipeError for a place that there is not.
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
            node = merge_values(ours, theirs)
        merged = merged.with_key(key, node, parent.keys[key])
    rules = child.get("rules")
    if rules and parent.get("rules") is None:
        merged = merged.with_key("rules", _merge_rules(rules, Node((), rules.where)), rules.where)
    return merged


def merge_values(child: Node, parent: Node) -> Node:
    """`child` over `parent`, key by key all the way down."""
    if not (child.is_mapping and parent.is_mapping):
        return child
    merged = child
    for key, theirs in parent.items():
        ours = child.get(key)
        node = theirs if ours is None else merge_values(ours, theirs)
        merged = merged.with_key(key, node, parent.keys[key])
    return merged


def _merge_rules(child: Node, parent: Node) -> Node:
    ours = {_text(rule, "name"): rule for rule in child.entries() if rule.get("name")}
    replaced = [ours.get(_text(rule, "name"), rule) for rule in parent.entries()]
    taking = [id(rule) for rule in replaced]
    front = [rule for rule in child.entries() if id(rule) not in taking and not _place(rule)]
    rules = front + replaced
    behind: dict[str, int] = {}
    for rule in child.entries():
        place = _place(rule)
        if place and id(rule) not in taking:
            rules.insert(_index(rules, rule, place, behind), rule)
    own = {id(rule) for rule in child.entries()}
    taken: set[str] = set()
    left: list[Node] = []
    for rule in rules:
        key = match_key(rule)
        if id(rule) in own or not taken & {key, CATCH_ALL}:
            left.append(rule.without(*PLACES) if _place(rule) else rule)
        if id(rule) in own:
            taken.add(key)
    return Node(tuple(left), child.where)


def _place(rule: Node) -> str | None:
    return next((place for place in PLACES if rule.get(place)), None)


def _text(node: Node, key: str) -> str:
    found = node.get(key)
    return found.value if found else ""


def _index(rules: list[Node], rule: Node, place: str, behind: dict[str, int]) -> int:
    """Where `rule` goes. behind: how many rules already stand behind each name, so that they keep their order."""
    anchor = rule.at([place])
    names = [_text(one, "name") for one in rules]
    if anchor.value not in names:
        known = [name for name in names if name]
        hint = did_you_mean(anchor.value, known) or f"named rules: {', '.join(known) or 'none'}"
        message = f"there is no rule named {anchor.value!r} to stand {place}"
        raise RecipeError(message, where=str(anchor.where), hint=hint)
    index = names.index(anchor.value)
    if place == "before":
        return index
    behind[anchor.value] = behind.get(anchor.value, 0) + 1
    return index + behind[anchor.value]


def _merge_passes(child: Node, parent: Node) -> Node:
    ours = {name: entry for entry in child.entries() for name in entry.value}
    theirs = {name: entry for entry in parent.entries() for name in entry.value}
    merged = {name: merge_values(ours[name], entry) if name in ours else entry for name, entry in theirs.items()}
    return Node(tuple((merged | {name: e for name, e in ours.items() if name not in merged}).values()), child.where)
