"""`dmq diff --html`: two sides as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmq_fx.inspection.diff import CURVES, Difference, SiteChange
from dmq_fx.inspection.diff_text import shown, telling
from dmq_fx.inspection.page import render_page, write_page
from dmq_fx.inspection.text import visible


def write_diff(path: str | Path, found: Difference) -> Path:
    """Write the page; raises DmqError if it cannot be written, or plotly is missing."""
    return write_page(path, diff_html(found))


def diff_html(found: Difference) -> str:
    """The page's text."""
    data = _data(found)
    parts = (("Recipe", found.recipe), ("Size", found.size), ("Error", found.error), ("Files (SHA-256)", found.files))
    return render_page(
        "diff",
        data,
        title=visible(f"{found.a.label} and {found.b.label}"),
        sides=(("A", found.a), ("B", found.b)),
        same=found.same,
        notes=found.notes,
        tables=[(name, [(c.what, shown(c.a), shown(c.b)) for c in changes]) for name, changes in parts],
        sites=[(change.site, _fields(change)) for change in found.sites],
        curves=bool(data["curves"]),
        measured=bool(data["sqnr"]),
    )


def _fields(change: SiteChange) -> list[tuple[str, str, str]]:
    if not change.a or not change.b:
        there = change.a or change.b
        scheme, none = str(there["scheme"]), "no such site"
        return [("scheme", scheme, none) if change.a else ("scheme", none, scheme)]
    return [(field, shown(change.a.get(field)), shown(change.b.get(field))) for field in telling(change)]


def _data(found: Difference) -> dict[str, Any]:
    """Curves of both, and the SQNR of the sites that both have."""
    sides = (("A", found.a), ("B", found.b))
    curves = [[name, kind, side.errors[kind]] for name, side in sides for kind in CURVES if side.errors.get(kind)]
    ours, theirs = ({r["name"]: r.get("sqnr_db") for r in side.rows or ()} for _, side in sides)
    both = [[visible(name), ours[name], theirs[name]] for name in ours if name in theirs]
    return {"curves": curves, "sqnr": [row for row in both if None not in row]}
