"""Lists of recipes for people: one row a name and place, with the newest version, searched by words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.source import read_source
from dmq_fx.sharing.index import clean
from dmq_fx.sharing.library import Listed


@dataclass(frozen=True)
class Found:
    """All versions of one name in one place, oldest first."""

    name: str
    place: str
    versions: tuple[Version, ...]
    summary: str

    @property
    def newest(self) -> Version:
        """The newest version that is not a pre-release, if there is one."""
        return max([one for one in self.versions if not one.is_prerelease] or self.versions)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "place": self.place,
            "newest": str(self.newest),
            "versions": [str(one) for one in self.versions],
            "summary": self.summary,
        }


def catalog(rows: Iterable[Listed]) -> list[Found]:
    """`rows` by place (in the order of looking up) and name. Summaries of local files are read from them."""
    groups: dict[tuple[str, str], list[Listed]] = {}
    for row in rows:
        groups.setdefault((row.place, row.name), []).append(row)
    found = []
    for (place, name), members in groups.items():
        members.sort(key=lambda row: row.version)
        versions = tuple(row.version for row in members)
        made = Found(name, place, versions, "")
        newest = next(row for row in members if row.version == made.newest)
        found.append(Found(name, place, versions, newest.summary if newest.path is None else _summary(newest.path)))
    return found


def search(found: Sequence[Found], words: Sequence[str]) -> list[Found]:
    """The rows in whose name or summary every word stands, whatever its case."""
    wanted = [word.casefold() for word in words]
    return [row for row in found if all(word in f"{row.name} {row.summary}".casefold() for word in wanted)]


def _summary(path: Path) -> str:
    try:
        node = read_source(path).tree.get("summary")
    except RecipeError:
        return ""
    return clean(node.value) if node is not None and isinstance(node.value, str) else ""
