"""The keys of a dataclass of the language: what schema, parser and documentation are derived from."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeGuard, Union, get_args, get_origin, get_type_hints

from dmq_fx.errors import InternalError

NONE = "none"
"""How a recipe writes None."""

_LIMITS = {"choices", "pattern", "keys", "key_pattern", "min_items", "omit", "since"} | {
    "minimum",
    "maximum",
    "exclusive_minimum",
    "exclusive_maximum",
}


@dataclass(frozen=True)
class Key:
    """One key: its name, type (None taken off), help and limits. `omit`: left out is a value of its own."""

    name: str
    type: Any
    optional: bool
    help: str
    limits: Mapping[str, Any]
    required: bool
    default: Any

    @property
    def omit(self) -> bool:
        return bool(self.limits.get("omit"))

    @property
    def since(self) -> int:
        """The version of the language that has the key."""
        return self.limits.get("since", 1)

    @property
    def writes_none(self) -> bool:
        """The value can be the word `none`."""
        return self.optional and not self.omit


@cache
def keys_of(cls: type) -> tuple[Key, ...]:
    """The keys of a dataclass whose fields are made with `option`, in order."""
    hints = get_type_hints(cls)
    return tuple(_key(cls, entry, hints[entry.name]) for entry in fields(cls) if "help" in entry.metadata)


def _key(cls: type, entry: Any, hint: Any) -> Key:
    limits = {name: value for name, value in entry.metadata.items() if name != "help"}
    unknown = set(limits) - _LIMITS
    if unknown:
        raise InternalError(f"{cls.__name__}.{entry.name}: unknown limits {sorted(unknown)}")
    default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    kind, optional = without_none(hint)
    return Key(entry.name, kind, optional, entry.metadata["help"], limits, default is MISSING, default)


def without_none(hint: Any) -> tuple[Any, bool]:
    """A type hint with None taken off, and whether it was there."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    kinds = tuple(kind for kind in get_args(hint) if kind is not type(None))
    return Union[kinds], len(kinds) < len(get_args(hint))  # noqa: UP007 (built from a tuple)


def item_type(kind: Any) -> Any | None:
    """Type of the items of `tuple[X, ...]`, else None."""
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def value_type(kind: Any) -> Any | None:
    """Type of the values of `dict[str, X]`, else None."""
    return get_args(kind)[1] if get_origin(kind) is dict else None


def union_types(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or `kind` alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def is_group(kind: Any) -> TypeGuard[type]:
    """`kind` is a dataclass of the language: a mapping with known keys."""
    return isinstance(kind, type) and is_dataclass(kind)


def to_plain(value: Any) -> Any:
    """A typed value of the language as a recipe writes it: dicts, lists, scalars and `none`."""
    if value is None:
        return NONE
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((key, getattr(value, key.name)) for key in keys_of(type(value)))
        return {key.name: to_plain(item) for key, item in pairs if not (key.omit and item == key.default)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value
