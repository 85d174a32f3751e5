"""The one order of a recipe and all that it extends, when a file has several parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def linearize(start: str, parents: Mapping[str, Sequence[str]]) -> list[str] | None:
    """`start` and its ancestors, nearest first, each once; None if their orders contradict one another.

    parents: of each name, the one that stands over the others first. This is C3 (Barrett et al., A Monotonic
    Superclass Linearization for Dylan, 1996), the order of Python's classes: a file stands over its own parents, and
    what two files share lies below both.
    """
    orders: dict[str, list[str] | None] = {}

    def order(name: str) -> list[str] | None:
        if name not in orders:
            above = [order(parent) for parent in parents[name]]
            known = [found for found in above if found is not None]
            merged = _merge([*known, list(parents[name])]) if len(known) == len(above) else None
            orders[name] = None if merged is None else [name, *merged]
        return orders[name]

    return order(start)


def _merge(queues: list[list[str]]) -> list[str] | None:
    merged: list[str] = []
    queues = [list(queue) for queue in queues if queue]
    while queues:
        head = next((q[0] for q in queues if not any(q[0] in other[1:] for other in queues)), None)
        if head is None:
            return None
        merged.append(head)
        queues = [rest for queue in queues if (rest := [name for name in queue if name != head])]
    return merged
