"""A difference for terminals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from dmq_fx.inspection.diff import Change, Difference, SiteChange
from dmq_fx.inspection.text import plain

SHOWN = 40
"""Sites in a terminal; `--json` and `--html` have all."""


def diff_lines(found: Difference) -> Iterator[RenderableType]:
    """What `dmq diff` prints, part by part."""
    yield plain(f"A  {found.a.label} ({found.a.kind})")
    yield plain(f"B  {found.b.label} ({found.b.kind})")
    if found.same:
        yield ""
        yield plain("nothing differs" if not found.notes else "nothing differs in what was compared")
    for title, changes in (("recipe", found.recipe), ("size", found.size), ("error", found.error)):
        if changes:
            yield from _head(title)
            yield _table(changes)
    if found.trajectory:
        yield from _head("trajectory (MSE by step: first, middle, last)")
        yield _table([Change(c.what, _ends(c.a), _ends(c.b)) for c in found.trajectory])
    if found.sites:
        yield from _head(f"{len(found.sites)} sites")
        yield _sites(found.sites[:SHOWN])
        if len(found.sites) > SHOWN:
            yield plain(f"and {len(found.sites) - SHOWN} more: --json or --html has all", "dim")
    if found.files:
        yield from _head("files that differ: " + ", ".join(change.what for change in found.files))
    for note in found.notes:
        yield plain(f"note: {note}", "dim")


def _head(title: str) -> Iterator[RenderableType]:
    yield ""
    yield plain(title, "bold")


def shown(value: Any) -> str:
    """A value of a recipe or a number, as text; `–` for none."""
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(changes: Sequence[Change]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("", "A", "B"):
        table.add_column(name, overflow="fold")
    for change in changes:
        table.add_row(*(plain(shown(value)) for value in (change.what, change.a, change.b)))
    return table


def _sites(changes: Sequence[SiteChange]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("site", "what", "A", "B"):
        table.add_column(name, overflow="fold")
    for change in changes:
        if not change.a or not change.b:
            table.add_row(plain(change.site), plain(f"only in {'A' if change.a else 'B'}"), "", "")
            continue
        for place, field in enumerate(telling(change)):
            cells = (change.site if not place else "", field, shown(change.a.get(field)), shown(change.b.get(field)))
            table.add_row(*(plain(cell) for cell in cells))
    return table


def telling(change: SiteChange) -> list[str]:
    """The fields that differ, without bits that the scheme's text tells as well."""
    within = ("weight bits", "activation bits") if "scheme" in change.changed else ()
    return [field for field in change.changed if field not in within]


def _ends(curve: Sequence[float | None] | None) -> str | None:
    if not curve:
        return None
    picked = (curve[0], curve[len(curve) // 2], curve[-1])
    return "  ".join("–" if value is None else f"{value:.2e}" for value in picked)
