"""The index of a remote. Whoever wrote it is not trusted: every value is checked before it is used or shown."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from dmq_fx.errors import RemoteError
from dmq_fx.recipe.language import RECIPE_NAME, RECIPE_VERSION
from dmq_fx.recipe.source import SIZE_LIMIT

INDEX_NAME = "index.json"
FORMAT = 1
BYTES_LIMIT = 16_000_000
ENTRIES_LIMIT = 50_000
SUMMARY_LIMIT = 200

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """A recipe of a remote. size: bytes of its file; signed: the remote says that it has a signature."""

    name: str
    version: str
    sha256: str
    size: int
    summary: str = ""
    signed: bool = False

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def path(self) -> str:
        """Where its file is in the remote: made from its digest, never from a name."""
        return f"recipes/{self.sha256}.yaml"


def parse_index(data: bytes, where: str) -> tuple[Entry, ...]:
    """The entries of an index, by name and version. Raises RemoteError for the first that is not as it should be."""
    if len(data) > BYTES_LIMIT:
        raise RemoteError(f"the index is larger than {BYTES_LIMIT:,} bytes", where=where)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"the index is not JSON: {str(error)[:80]}", where=where) from None
    if not isinstance(document, dict) or not isinstance(document.get("recipes"), list):
        raise RemoteError("the index is not one of recipes", where=where, hint="is this the address of a remote?")
    if type(document.get("format")) is not int or document["format"] != FORMAT:
        message = f"the index has the format {str(document.get('format'))[:20]!r}, and this dmq reads {FORMAT}"
        raise RemoteError(message, where=where, hint="update dmq")
    listed = document["recipes"]
    if len(listed) > ENTRIES_LIMIT:
        raise RemoteError(f"the index lists more than {ENTRIES_LIMIT:,} recipes", where=where)
    found: dict[tuple[str, Version], Entry] = {}
    for place, raw in enumerate(listed):
        entry = _entry(raw, f"{where}: recipe {place}")
        key = (entry.name, Version(entry.version))
        if key in found:
            raise RemoteError(f"the index lists {entry.reference} twice", where=where)
        found[key] = entry
    return tuple(found[key] for key in sorted(found))


def index_text(entries: Iterable[Entry]) -> bytes:
    """An index of `entries`: whatever their order, the same bytes."""
    rows = sorted(entries, key=lambda entry: (entry.name, Version(entry.version)))
    recipes = [{key: value for key, value in vars(entry).items() if value not in ("", False)} for entry in rows]
    return (json.dumps({"format": FORMAT, "recipes": recipes}, indent=1, ensure_ascii=False) + "\n").encode()


def clean(text: str, limit: int = SUMMARY_LIMIT) -> str:
    """`text` on one line without control and direction characters, cut: safe to print on a terminal."""
    kept = "".join(char if not unicodedata.category(char).startswith(("C", "Z")) else " " for char in text[: 4 * limit])
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _entry(raw: Any, where: str) -> Entry:
    if not isinstance(raw, dict):
        raise RemoteError("an entry of the index is not an object", where=where)

    def text(key: str, pattern: str | re.Pattern[str]) -> str:
        value = raw.get(key)
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII if isinstance(pattern, str) else 0):
            raise RemoteError(f"{key} is not one: {clean(repr(value), 60)}", where=where)
        return value

    size, summary, signed = raw.get("size"), raw.get("summary", ""), raw.get("signed", False)
    if type(size) is not int or not 0 < size <= SIZE_LIMIT:
        raise RemoteError(f"size must be between 1 and {SIZE_LIMIT:,}, got {clean(repr(size), 30)}", where=where)
    if not isinstance(summary, str) or not isinstance(signed, bool):
        raise RemoteError("summary must be a string, and signed true or false", where=where)
    return Entry(
        name=text("name", RECIPE_NAME),
        version=text("version", RECIPE_VERSION),
        sha256=text("sha256", _SHA256),
        size=size,
        summary=clean(summary),
        signed=signed,
    )
