"""What an artifact is as a whole: its title, its sizes, and everything as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dmq_fx.artifact.files import TENSORS
from dmq_fx.inspection.inspected import Inspected
from dmq_fx.inspection.scheme_text import scheme_text
from dmq_fx.inspection.statistics import Distribution, Pair, SiteStatistics


def title(found: Inspected) -> str:
    """Recipe and model in a line."""
    model = found.model
    return f"{found.recipe['name']} {found.recipe['version']} on {model['origin']} ({model['class_name']})"


def sizes(found: Inspected) -> dict[str, Any]:
    """Bytes, counted in three ways, beside full precision's.

    paper: every parameter at the bits of most weights; None if an older dmq did not count it. honest: with scales, zero
    points and what stays in full precision. tensors: `model.safetensors` as it lies on disk. folder: all files.
    """
    totals, record = found.report["totals"], found.manifest.record(TENSORS)
    counted = found.report.get("sizes", {})
    return {
        "full_precision": totals["full_precision_bytes"],
        "paper": counted.get("paper_bytes", totals.get("paper_bytes")),
        "honest": counted.get("honest_bytes", totals["bytes"]),
        "tensors": record.size if record else None,
        "folder": found.bytes,
    }


def summary_lines(found: Inspected) -> list[str]:
    """A few lines for below a tree or a list."""
    totals, counted = found.report["totals"], sizes(found)
    paper = "" if counted["paper"] is None else f"{counted['paper'] / 1e6:.2f} MB as papers count, "
    lines = [
        f"{totals['quantized_sites']} of {totals['sites']} sites quantized, {totals['mean_weight_bits']:.2f} bits a "
        f"weight on average, {totals['bops'] / totals['full_precision_bops']:.1%} of full precision's BOPs",
        f"{paper}{counted['honest'] / 1e6:.2f} MB with scales and full precision, {found.bytes / 1e6:.2f} MB on disk "
        f"(full precision {totals['full_precision_bytes'] / 1e6:.2f} MB)",
    ]
    return lines + [f"note: {note}" for note in found.missing]


def by_role(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Totals by role, roles by their number of sites; a site with several counts in each."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        for role in row["roles"] or ["none"]:
            one = found.setdefault(role, {"role": role, "sites": 0, "quantized": 0, "bytes": 0, "bops": 0, "sqnr": []})
            one["sites"] += 1
            one["quantized"] += bool(row["weight"] or row["activation"])
            one["bytes"] += row["bytes"] or 0
            one["bops"] += row["bops"]
            one["sqnr"] += [] if row["sqnr_db"] is None else [row["sqnr_db"]]
    for one in found.values():
        measured = one.pop("sqnr")
        one["worst_sqnr_db"] = min(measured, default=None)
        one["median_sqnr_db"] = float(np.median(measured)) if measured else None
    return sorted(found.values(), key=lambda one: (-one["sites"], one["role"]))


def summary_json(found: Inspected, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The object that `dmq inspect --json` prints: everything that is known of the artifact and of `rows`."""
    names = {row["name"] for row in rows}
    errors = {
        key: {name: one for name, one in value.items() if name in names} if isinstance(value, dict) else value
        for key, value in found.errors.items()
    }
    return {
        "recipe": found.recipe,
        "digest": found.manifest.digest,
        "model": found.model,
        "bytes": found.bytes,
        "sizes": sizes(found),
        "totals": found.report["totals"],
        "roles": by_role(found.rows),
        "passes": found.report["passes"],
        "timesteps": found.timesteps,
        "missing": list(found.missing),
        "sites": [_site(found, row) for row in rows],
        "errors": errors,
    }


def _site(found: Inspected, row: Mapping[str, Any]) -> dict[str, Any]:
    full = {**row, "scheme_text": scheme_text(row, found.slots)}
    if found.statistics is not None:
        full["statistics"] = statistics_json(found.statistics.of(row["name"]))
    return full


def statistics_json(known: SiteStatistics, digits: int = 4) -> dict[str, Any]:
    """Distributions of a site as plain lists, of numbers with so many digits."""
    return {
        "input": None if known.input is None else _pair(known.input, digits),
        "weight": None if known.weight is None else _pair(known.weight, digits),
        "quantized_range": None if known.quantized is None else numbers(known.quantized, digits),
    }


def _pair(pair: Pair, digits: int) -> dict[str, Any]:
    after = _distribution(pair.after, digits) if pair.scaled else None
    return {"before": _distribution(pair.before, digits), "after": after}


def _distribution(one: Distribution, digits: int) -> dict[str, Any]:
    return {
        "channel_maxima": numbers(one.channels, digits),
        "channels_a_number": one.run,
        "peak": short(one.peak, digits),
        "histogram": numbers(one.shares, digits),
        "histogram_limit": one.limit,
        "kurtosis": one.kurtosis,
        "range": None if one.range is None else numbers(one.range, digits),
    }


def numbers(values: Any, digits: int) -> list[Any]:
    """Nested lists of numbers; None for what is not finite."""
    known = np.isfinite(values)
    safe = np.where(known & (values != 0), values, 1.0)
    place = digits - 1 - np.floor(np.log10(np.abs(safe))).astype(int)
    up, down = 10.0 ** np.maximum(place, 0), 10.0 ** np.maximum(-place, 0)
    rounded = np.where(values == 0, 0.0, np.round(safe * up / down) * down / up)
    if known.all():
        return rounded.tolist()
    mixed = rounded.astype(object)
    mixed[~known] = None
    return mixed.tolist()


def short(value: float, digits: int) -> float | None:
    """A number of so many digits; None if it is not finite."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None
