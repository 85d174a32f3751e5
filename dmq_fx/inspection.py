"""What was done to every site, as rows for terminals, files and scripts."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from rich.console import Console
from rich.table import Table

from dmq_fx.lowering.kernels import Kernel
from dmq_fx.planning import Plan

FULL_PRECISION: dict[str, Any] = {"weight": None, "activation": None}
UNMEASURED: dict[str, Any] = {
    "bytes": None,
    "sqnr_db": None,
    "weight_sqnr_db": None,
    "notes": [],
    "passes": [],
    "rule": None,
    "widths": [],
}


def site_rows(plan: Plan, errors: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The plan's rows with what was measured."""
    return [row | errors.get(row["name"], {}) for row in plan.to_json()["sites"]]


def artifact_rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an artifact's `quantization.json`, with every site's precision written out."""
    rows = []
    for site in table["sites"]:
        row = {key: value for key, value in site.items() if key != "precision"}
        precision = table["schemes"][site["precision"]] if "precision" in site else FULL_PRECISION
        rows.append(UNMEASURED | row | precision)
    return rows


def filter_rows(rows: Sequence[Mapping[str, Any]], pattern: str | None) -> list[Mapping[str, Any]]:
    """Rows whose name matches the glob (`*` crosses dots); all without one."""
    return [row for row in rows if pattern is None or fnmatchcase(row["name"], pattern)]


def site_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A rich table of sites: name, op, roles, shape, scheme, bits, passes, size, error where it was measured."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    passes = any(row.get("passes") for row in rows)
    measured = any("sqnr_db" in row for row in rows)
    lowered = any("kernel" in row for row in rows)
    table.add_column("site", overflow="fold", ratio=3)
    for name in ("op", "roles", "shape", "scheme"):
        table.add_column(name, overflow="fold", ratio=1 if name == "roles" else None)
    for name in ("W", "A"):
        table.add_column(name, justify="right", min_width=2)
    if passes:
        table.add_column("passes", overflow="fold")
    table.add_column("kB", justify="right", min_width=6)
    if measured:
        table.add_column("SQNR", justify="right", min_width=4)
    if lowered:
        table.add_column("kernel", overflow="fold")
    for row in rows:
        cells = [row["name"], row["op"], " ".join(row["roles"]), "×".join(str(size) for size in row["shape"])]
        cells += [row["scheme"], _bits(row.get("weight"), row.get("widths")), _bits(row.get("activation"))]
        if passes:
            cells.append(" ".join(row["passes"]))
        cells.append("" if row.get("bytes") is None else f"{row['bytes'] / 1000:.1f}")
        if measured:
            cells.append("" if row.get("sqnr_db") is None else f"{row['sqnr_db']:.1f}")
        if lowered:
            cells.append(row.get("kernel") or "-")
        table.add_row(*cells)
    return table


def kernel_lines(backend: str, kernels: Mapping[str, Kernel]) -> list[str]:
    """How many sites get which kernel, and for what reasons others get none."""
    counts = Counter(str(kernel) for kernel in kernels.values())
    return [f"{backend}: {count} sites {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])]


def _bits(spec: Mapping[str, Any] | None, widths: Sequence[Sequence[int]] | None = None) -> str:
    """Bits of a precision, or from the fewest to the most that output channels have."""
    if not spec:
        return "-"
    if not widths:
        return str(spec["bits"])
    return f"{widths[0][0]}-{widths[-1][0]}" if len(widths) > 1 else str(widths[0][0])


def site_table_html(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The site table as one self-contained HTML page."""
    console = Console(record=True, width=180, file=io.StringIO(), color_system=None, legacy_windows=False)
    console.print(site_table(title, rows))
    return console.export_html(inline_styles=True)
