"""A recipe's text as a tree in which every value and every key knows where it was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, order=True)
class Position:
    """A place a user can open: `recipe.yaml:12:5` (lines and columns from 1), or a command-line option."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Node:
    """A value with its place.

    value: a scalar (None, bool, int, float, str), a tuple of nodes, or a dict of nodes.
    keys: where each key of a mapping is written.
    """

    value: Any
    where: Position
    keys: Mapping[str, Position] = field(default_factory=dict)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, tuple)

    def items(self) -> Iterator[tuple[str, Node]]:
        """Keys and nodes of a mapping; nothing for any other value."""
        return iter(self.value.items() if self.is_mapping else ())

    def entries(self) -> tuple[Node, ...]:
        """Nodes of a list; nothing for any other value."""
        return self.value if self.is_list else ()

    def get(self, key: str) -> Node | None:
        """The node under `key`, or None if there is none or this is not a mapping."""
        return self.value.get(key) if self.is_mapping else None

    def at(self, path: Sequence[str | int]) -> Node:
        """The node that `path` (keys and indices) leads to."""
        node = self
        for step in path:
            node = node.value[step]
        return node

    def with_key(self, key: str, node: Node, where: Position) -> Node:
        """This mapping with `key` set to `node`; a key that is new is placed at `where`."""
        keys = {**self.keys, key: self.keys.get(key, where)}
        return replace(self, value={**self.value, key: node}, keys=keys)

    def without(self, *names: str) -> Node:
        """This mapping without the keys `names`."""
        kept = {key: node for key, node in self.items() if key not in names}
        return replace(self, value=kept, keys={key: self.keys[key] for key in kept})

    def plain(self) -> Any:
        """The value as dicts, lists and scalars."""
        if self.is_mapping:
            return {key: node.plain() for key, node in self.items()}
        if self.is_list:
            return [node.plain() for node in self.value]
        return self.value


def from_plain(value: Any, where: Position) -> Node:
    """A tree of dicts, lists (or tuples) and scalars, all placed at `where`."""
    if isinstance(value, Mapping):
        return Node({key: from_plain(item, where) for key, item in value.items()}, where, dict.fromkeys(value, where))
    if isinstance(value, (list, tuple)):
        return Node(tuple(from_plain(item, where) for item in value), where)
    return Node(value, where)
