"""One helper for everything that is found by name: passes, backends, observers, metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from dmq_fx.errors import DmqError, InternalError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things of one kind; modules named in an entry-point group are imported on first use."""

    def __init__(self, kind: str, *, entry_point_group: str | None = None) -> None:
        self.kind = kind
        self._group = entry_point_group
        self._loaded = entry_point_group is None
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that records its argument under `name`."""

        def record(entry: T) -> T:
            if name in self._entries and self._entries[name] is not entry:
                raise InternalError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return record

    def get(self, name: str, *, error: type[DmqError] = DmqError, where: str | None = None) -> T:
        """The entry called `name`; raises `error` with the closest names if there is none."""
        if name not in self._entries:
            self._load(name)
        if name not in self._entries:
            self._load()
        if name not in self._entries:
            hint = did_you_mean(name, self._entries) or f"known: {', '.join(self.names())}"
            raise error(f"unknown {self.kind} {name!r}", where=where, hint=hint)
        return self._entries[name]

    def names(self) -> list[str]:
        self._load()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[tuple[str, T]]:
        self._load()
        return iter(sorted(self._entries.items()))

    def _load(self, name: str | None = None) -> None:
        """Import the modules of the entry points, or of those with this name alone: what nobody asks for stays out."""
        if self._loaded or self._group is None:
            return
        self._loaded = name is None  # set first: a loaded module may ask the registry
        for point in sorted(entry_points(group=self._group), key=lambda p: p.name):
            if name not in (None, point.name):
                continue
            try:
                point.load()
            except Exception as error:  # whatever a package that is not ours raises
                where = point.dist.name if point.dist else point.value
                raise DmqError(f"cannot load the {self.kind} {point.name!r}: {error!r}", where=where) from error
