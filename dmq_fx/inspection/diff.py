"""What differs between two recipes, locks or artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dmq_fx.inspection.rows import bits
from dmq_fx.inspection.scheme_text import fold_text, scheme_text
from dmq_fx.inspection.sides import Side

ABSENT = "absent"
TOTALS = ("quantized_sites", "mean_weight_bits", "paper_bytes", "bytes", "bops", "full_precision_bytes", "parameters")
CURVES = ("trajectory_mse", "prediction_mse", "prediction_mse_same_input")
FIELDS = ("scheme", "weight bits", "activation bits", "folds", "passes", "kB", "SQNR dB", "weight SQNR dB")


@dataclass(frozen=True)
class Change:
    """One value in A and in B; None where that side has none."""

    what: str
    a: Any
    b: Any


@dataclass(frozen=True)
class SiteChange:
    """A site that differs; a side without the site has no fields. changed: names of the fields that differ."""

    site: str
    a: Mapping[str, Any]
    b: Mapping[str, Any]
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """What differs, part by part; a part that one side cannot have is empty, and a note says so.

    recipe: values of the resolved recipes, rules by what they match, passes by name. size, error: of the whole.
    trajectory: errors by sampler step. files: of the artifacts' folders.
    """

    a: Side
    b: Side
    recipe: tuple[Change, ...]
    sites: tuple[SiteChange, ...]
    size: tuple[Change, ...]
    error: tuple[Change, ...]
    trajectory: tuple[Change, ...]
    files: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Nothing differs."""
        parts = (self.recipe, self.sites, self.size, self.error, self.trajectory, self.files)
        return not any(parts)

    def to_json(self) -> dict[str, Any]:
        """The object that `dmq diff --json` prints."""
        sites = [{"site": s.site, "a": dict(s.a), "b": dict(s.b), "changed": list(s.changed)} for s in self.sites]
        parts = ("recipe", "size", "error", "trajectory", "files")
        return {
            "same": self.same,
            "a": {"label": self.a.label, "kind": self.a.kind},
            "b": {"label": self.b.label, "kind": self.b.kind},
            "sites": sites,
            **{part: [vars(change) for change in getattr(self, part)] for part in parts},
            "notes": list(self.notes),
        }


def difference(a: Side, b: Side) -> Difference:
    """Compare both sides."""
    notes = [side.note for side in (a, b) if side.note]
    both = a.kind == b.kind == "artifact"
    if a.rows is None or b.rows is None:
        notes.append("sites and sizes are not compared")
    elif not both:
        notes.append("folds, errors and files are not compared: that takes two artifacts")
    sites = () if a.rows is None or b.rows is None else tuple(_sites(a, b, measured=both))
    size = [Change(name, a.totals[name], b.totals[name]) for name in TOTALS if name in a.totals and name in b.totals]
    if both:
        size.append(Change("folder_bytes", a.bytes, b.bytes))
    return Difference(
        a,
        b,
        recipe=tuple(_recipe(a.document, b.document)),
        sites=sites,
        size=_unequal(size),
        error=_unequal(_errors(a, b)) if both else (),
        trajectory=_unequal(Change(n, a.errors.get(n), b.errors.get(n)) for n in CURVES) if both else (),
        files=_unequal(_files(a, b)) if both else (),
        notes=tuple(notes),
    )


def _unequal(changes: Any) -> tuple[Change, ...]:
    return tuple(change for change in changes if change.a != change.b)


# ---- recipes ----


def _recipe(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    for key in dict.fromkeys((*a, *b)):
        if key == "rules":
            yield from _rules(a.get(key) or [], b.get(key) or [])
        elif key == "passes":
            ours, theirs = ({n: o for one in side.get(key) or [] for n, o in one.items()} for side in (a, b))
            yield from _values("passes", ours, theirs)
            order = [[name for name in side if name in ours and name in theirs] for side in (ours, theirs)]
            yield from _unequal([Change("order of passes", *order)])
        else:
            yield from _values(key, a.get(key), b.get(key))


def _values(path: str, a: Any, b: Any) -> Iterator[Change]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys((*a, *b)):
            yield from _values(f"{path}.{key}", a.get(key), b.get(key))
    elif a != b:
        yield Change(path, a, b)


def _rules(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Iterator[Change]:
    ours, theirs = _by_match(a), _by_match(b)
    for match in dict.fromkeys((*ours, *theirs)):
        one, other = (
            {key: value for key, value in side[match].items() if key != "match"} if match in side else None
            for side in (ours, theirs)
        )
        yield from _values(f"rule {match}", one, other)
    order = [[match for match in side if match in ours and match in theirs] for side in (ours, theirs)]
    yield from _unequal([Change("order of rules", *order)])


def _by_match(rules: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Rules by what they match, in order; a child's rule may match what its parent's does, and both are kept."""
    found: dict[str, Mapping[str, Any]] = {}
    for rule in rules:
        match, place = _match(rule), 1
        while (name := match if place == 1 else f"{match} (rule {place} of these)") in found:
            place += 1
        found[name] = rule
    return found


def _match(rule: Mapping[str, Any]) -> str:
    """Such as `op: [linear], name: [mid_block.*]`; `everything` for a catch-all."""
    match = rule.get("match") or {}
    shown = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in match.items())
    return ", ".join(shown).replace('"', "") or "everything"


# ---- sites ----


def _sites(a: Side, b: Side, *, measured: bool) -> Iterator[SiteChange]:
    ours, theirs = ({row["name"]: _fields(row, side, measured) for row in side.rows or ()} for side in (a, b))
    for name in dict.fromkeys((*ours, *theirs)):
        one, other = ours.get(name, {}), theirs.get(name, {})
        changed = tuple(field for field in FIELDS if one.get(field) != other.get(field))
        if changed:
            yield SiteChange(name, one, other, changed)


def _fields(row: Mapping[str, Any], side: Side, measured: bool) -> dict[str, Any]:
    """What is compared of a site."""
    quantized = bool(row.get("weight") or row.get("activation"))
    fields = {
        "scheme": scheme_text(row, side.slots),
        "weight bits": bits(row, "weight") if row["shape"] else None,
        "activation bits": bits(row, "activation"),
        "passes": ", ".join(row.get("passes") or ()) if quantized else "",
    }
    if measured:
        size = row.get("bytes")
        fields |= {
            "folds": fold_text(row.get("folds")),
            "kB": None if size is None else round(size / 1000, 3),
            "SQNR dB": row.get("sqnr_db"),
            "weight SQNR dB": row.get("weight_sqnr_db"),
        }
    return fields


# ---- errors and files ----


def _errors(a: Side, b: Side) -> Iterator[Change]:
    measured = [[r["sqnr_db"] for r in side.rows or () if r.get("sqnr_db") is not None] for side in (a, b)]
    for name, of in (("worst site, SQNR dB", min), ("median site, SQNR dB", median)):
        yield Change(name, *(round(of(values), 3) if values else None for values in measured))
    for name in CURVES:
        means = [_mean(side.errors.get(name)) for side in (a, b)]
        yield Change(f"mean {name}", *means)


def _mean(curve: Sequence[float | None] | None) -> float | None:
    known = [value for value in curve or () if value is not None]
    return float(f"{sum(known) / len(known):.6g}") if known else None


def _files(a: Side, b: Side) -> Iterator[Change]:
    for name in sorted({*a.files, *b.files}):
        yield Change(name, *((side.files.get(name) or ABSENT)[:16] for side in (a, b)))
