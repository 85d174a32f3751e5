"""A site's precision, folds and numbers in the few words that a line has room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmq_fx.sites import PRODUCTS

FULL_PRECISION = "full precision"


def scheme_text(row: Mapping[str, Any], slots: int | None = None) -> str:
    """Such as `W4 per-channel asym · A8 per-tensor asym ×20 slots`; slots: timesteps with ranges of their own."""
    parts = [weight_text(row), activation_text(row, slots)]
    return " · ".join(part for part in parts if part) or FULL_PRECISION


def weight_text(row: Mapping[str, Any]) -> str:
    """Of the weight alone, such as `W3 (2/3/4) per-channel asym`; empty where it stays in full precision."""
    spec = row.get("weight")
    if not spec:
        return ""
    granularity = spec["granularity"].replace("_", "-")
    if spec["granularity"] == "per_group":
        granularity += f" {spec['group_size']}"
    widths = [str(bits) for bits, _ in row.get("widths") or ()]
    bits = widths[0] if len(widths) == 1 else str(spec["bits"])  # of the site, where a pass has chosen them
    mixed = f" ({'/'.join(widths)})" if len(widths) > 1 else ""
    return f"W{bits}{mixed} {granularity} {_sign(spec)}"


def activation_text(row: Mapping[str, Any], slots: int | None = None) -> str:
    """Of the input alone; empty where it stays in full precision."""
    spec = row.get("activation")
    if not spec:
        return ""
    ranges = "" if not spec["per_timestep"] else " by timestep" if slots is None else f" ×{slots} slots"
    return f"A{spec['bits']} {spec['granularity'].replace('_', '-')} {_sign(spec)}{ranges}"


def _sign(spec: Mapping[str, Any]) -> str:
    return "sym" if spec["symmetric"] else "asym"


def fold_text(folds: Mapping[str, Any] | None) -> str:
    """Such as `γ 0.81…1.39 in norm · 2^k ≤ 3 (12 % of channels) in weights · decoder half · z 0…137`."""
    if not folds:
        return ""
    parts = []
    if gamma := folds.get("gamma"):
        parts.append(f"γ {gamma['min']:.3g}…{gamma['max']:.3g} in {gamma['in']}")
    if shift := folds.get("shift"):
        parts.append(f"2^k ≤ {shift['max']} ({shift['share']:.0%} of channels) in {shift['in']}")
    if "split" in folds:
        parts.append(f"{folds['split']} {'product' if folds['split'] in PRODUCTS else 'half'}")
    if "bias" in folds:
        parts.append(f"bias {folds['bias']}")
    if zero_point := folds.get("zero_point"):
        low, high = zero_point
        parts.append(f"z {low}" if low == high else f"z {low}…{high}")
    return " · ".join(parts)


def size_text(size: float | None) -> str:
    """Bytes in kB or MB; empty for None."""
    if size is None:
        return ""
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def decibels_text(value: float | None) -> str:
    """An SQNR; empty for None."""
    return "" if value is None else f"{value:.1f} dB"
