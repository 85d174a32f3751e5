"""Sites as rows: plain dicts for terminals, files and scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dmq_fx.errors import DmqError, did_you_mean
from dmq_fx.recipe.matching import name_matches

if TYPE_CHECKING:
    from dmq_fx.planning import Plan

FULL_PRECISION: dict[str, Any] = {"weight": None, "activation": None}
FULL_PRECISION_BITS = 32
UNMEASURED: dict[str, Any] = {
    "bytes": None,
    "sqnr_db": None,
    "weight_sqnr_db": None,
    "notes": [],
    "passes": [],
    "rule": None,
    "widths": [],
    "folds": {},
}
SORTS = ("sqnr", "size", "bops")


def site_rows(plan: Plan, errors: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The plan's rows with what was measured."""
    return [row | errors.get(row["name"], {}) for row in plan.to_json()["sites"]]


def artifact_rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an artifact's `quantization.json`, with every site's precision and bit operations written out."""
    rows = []
    for site in table["sites"]:
        row = {key: value for key, value in site.items() if key != "precision"}
        precision = table["schemes"][site["precision"]] if "precision" in site else FULL_PRECISION
        row = UNMEASURED | row | precision
        rows.append(row | {"bops": bit_operations(row)})
    return rows


def bits(row: Mapping[str, Any], half: str) -> float:
    """Bits of a site's `weight` (the mean over its channels) or `activation`; full precision's where it stays there."""
    counted = row.get(f"{half}_bits")
    if counted is not None:
        return counted
    if half == "weight" and row.get("widths"):
        return sum(bits * channels for bits, channels in row["widths"]) / sum(n for _, n in row["widths"])
    return row[half]["bits"] if row.get(half) else FULL_PRECISION_BITS


def bit_operations(row: Mapping[str, Any]) -> int:
    """Multiply-accumulates x bits of both operands, for one sample."""
    activation = bits(row, "activation")
    return round(row["macs"] * activation * (bits(row, "weight") if row["shape"] else activation))


def filter_rows(rows: Sequence[Mapping[str, Any]], pattern: str | None) -> list[Mapping[str, Any]]:
    """Rows whose name matches the glob (`*` crosses dots) or `re:` expression; all without one."""
    return [row for row in rows if pattern is None or name_matches(pattern, row["name"])]


def select(
    rows: Sequence[Mapping[str, Any]],
    *,
    site: str | None = None,
    role: str | None = None,
    op: str | None = None,
    sort: str | None = None,
    worst: int | None = None,
    where: str | None = None,
) -> list[Mapping[str, Any]]:
    """The rows that are asked for, in the order that is asked for.

    sort: `sqnr` (lowest first), `size` or `bops` (largest first); sites without that number come last. worst: only the
    first so many, by SQNR if no other order is given, and only sites that have the number. Raises DmqError, at
    `where`, for a name, role or op that no site has, and where nothing would be left.
    """
    chosen = [row for row in rows]
    if site is not None:
        try:
            chosen = filter_rows(chosen, site)
        except re.error as error:
            raise DmqError(f"{site!r} is no regular expression: {error}", where="--site") from None
        _some(chosen, f"no site matches {site!r}", did_you_mean(site, [row["name"] for row in rows]), where)
    for wanted, what, values in ((role, "role", "roles"), (op, "op", "op")):
        if wanted is None:
            continue
        known = sorted({value for row in rows for value in _listed(row[values])})
        if wanted not in known:
            hint = did_you_mean(wanted, known) or f"there are: {', '.join(known)}"
            raise DmqError(f"no site has the {what} {wanted!r}", where=where, hint=hint)
        chosen = [row for row in chosen if wanted in _listed(row[values])]
    if rows and not chosen:
        asked = {"site": site, "role": role, "op": op}
        both = " and ".join(f"--{what} {value}" for what, value in asked.items() if value is not None)
        raise DmqError(f"no site fits {both} at once", where=where, hint="leave one of them out")
    order = sort or ("sqnr" if worst is not None else None)
    if order is None:
        return chosen
    if order not in SORTS:
        raise DmqError(f"cannot sort by {order!r}", where="--sort", hint=f"one of {', '.join(SORTS)}")
    key = {"sqnr": "sqnr_db", "size": "bytes", "bops": "bops"}[order]
    known_rows = [row for row in chosen if row.get(key) is not None]
    ranked = sorted(known_rows, key=lambda row: row[key], reverse=order != "sqnr")
    if worst is not None:
        hint = f"sort by one of {', '.join(one for one in SORTS if one != order)}"
        _some(ranked, f"none of these sites has a number to sort by {order}", hint, where)
        return ranked[:worst]
    return ranked + [row for row in chosen if row.get(key) is None]


def _listed(value: Any) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def _some(rows: Sequence[Any], message: str, hint: str | None, where: str | None) -> None:
    if not rows:
        raise DmqError(message, where=where, hint=hint or "`dmq inspect` without --site lists them")
