"""An artifact's tables as lists of flat dicts, for `pandas.DataFrame` and its like."""

from __future__ import annotations

from typing import Any

from dmq_fx.inspection.inspected import Inspected
from dmq_fx.inspection.rows import bits
from dmq_fx.inspection.scheme_text import scheme_text
from dmq_fx.inspection.statistics import Distribution, Pair

Record = dict[str, Any]


def site_records(found: Inspected) -> list[Record]:
    """A record a site: what it is, its bits, folds, size and errors; kurtosis and peaks where they were kept.

    bytes: of the weights. macs, bops: for one sample. Absent numbers are None.
    """
    records = []
    for row in found.rows:
        folds = row["folds"]
        gamma, shift = folds.get("gamma", {}), folds.get("shift", {})
        record = {
            "site": row["name"],
            "op": row["op"],
            "roles": " ".join(row["roles"]),
            "shape": "x".join(map(str, row["shape"])),
            "scheme": row["scheme"],
            "precision": scheme_text(row, found.slots),
            "weight_bits": bits(row, "weight") if row["shape"] else None,
            "activation_bits": bits(row, "activation"),
            "gamma_min": gamma.get("min"),
            "gamma_max": gamma.get("max"),
            "largest_shift": shift.get("max"),
            "split": folds.get("split"),
            "bytes": row["bytes"],
            "macs": row["macs"],
            "bops": row["bops"],
            "sqnr_db": row["sqnr_db"],
            "weight_sqnr_db": row["weight_sqnr_db"],
        }
        known = found.statistics.of(row["name"]) if found.statistics is not None else None
        for kind in ("input", "weight"):
            pair: Pair | None = getattr(known, kind, None)
            record[f"{kind}_kurtosis"] = pair.before.kurtosis if pair else None
            record[f"{kind}_peak"] = pair.before.peak if pair else None
            record[f"{kind}_peak_scaled"] = pair.after.peak if pair else None
        records.append(record)
    return records


def error_records(found: Inspected) -> list[Record]:
    """A record a site and timestep slot: `local_sqnr_db` of its output for full precision's input, and
    `accumulated_sqnr_db` for what the quantized sites before it give."""
    local, added = (found.errors.get(f"{kind}_sqnr_db", {}) for kind in ("local", "accumulated"))
    records = []
    for row in found.rows:
        name = row["name"]
        for slot in range(len(added.get(name, local.get(name, ())))):
            record = {"site": name, "slot": slot, "timestep": _timestep(found, slot)}
            for kind, of_sites in (("local", local), ("accumulated", added)):
                record[f"{kind}_sqnr_db"] = of_sites[name][slot] if name in of_sites else None
            records.append(record)
    return records


def range_records(found: Inspected, site: str) -> list[Record]:
    """A record a timestep slot: the smallest and largest value of a site's input, as it is and scaled, and what the
    integers reach. Empty where no statistics were kept."""
    found.row(site)
    known = found.statistics.of(site) if found.statistics is not None else None
    if known is None or known.input is None or known.input.before.range is None:
        return []
    after = known.input.after.range
    records = []
    for slot, (low, high) in enumerate(known.input.before.range.tolist()):
        scaled = (low, high) if after is None else after[slot].tolist()
        reach = (None, None) if known.quantized is None else known.quantized[slot].tolist()
        records.append(
            {
                "slot": slot,
                "timestep": _timestep(found, slot),
                "low": low,
                "high": high,
                "scaled_low": scaled[0],
                "scaled_high": scaled[1],
                "quantized_low": reach[0],
                "quantized_high": reach[1],
            }
        )
    return records


def channel_records(found: Inspected, site: str) -> list[Record]:
    """A record an input channel (or run of channels): largest |x| of input and weight, before and after scaling.
    Empty where no statistics were kept."""
    found.row(site)
    known = found.statistics.of(site) if found.statistics is not None else None
    columns: dict[str, Distribution] = {}
    for kind in ("input", "weight"):
        pair: Pair | None = getattr(known, kind, None)
        if pair is not None:
            columns |= {kind: pair.before, f"{kind}_scaled": pair.after}
    length = max((len(one.channels) for one in columns.values()), default=0)
    run = next(iter(columns.values())).run if columns else 1
    return [
        {"channel": place * run}
        | {name: float(one.channels[place]) if place < len(one.channels) else None for name, one in columns.items()}
        for place in range(length)
    ]


def trajectory_records(found: Inspected) -> list[Record]:
    """A record a denoiser call: the mean squared errors of the report at it; None where one was not measured.

    `trajectory_mse` is of the state after the step, and is there once a step, where others may be more.
    """
    names = ("trajectory_mse", "prediction_mse", "prediction_mse_same_input")
    curves = {name: found.errors.get(name) or [] for name in names}
    length = max(map(len, curves.values()))
    return [
        {"step": step + 1} | {name: curve[step] if step < len(curve) else None for name, curve in curves.items()}
        for step in range(length)
    ]


def _timestep(found: Inspected, slot: int) -> float | None:
    return found.timesteps[slot] if slot < len(found.timesteps) else None
