"""Quality gates: what a recipe's `expect:` demands of the compiled model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmq_fx.recipe.language import Gate

MEASURED_BY_SAMPLING = frozenset({"trajectory_mse", "final_mse", "final_psnr"})
"""Gates that need images to be sampled; the rest is known from the plan and the files."""

BACKEND_PARITY = "backend_parity"
"""The gate that compares the error of the recipe's backend with that of fake quantization."""

GATE_SAMPLES = 16
"""Images that a gate's measurement takes."""


@dataclass(frozen=True)
class GateResult:
    """One gate: what was demanded, what was measured, whether it holds."""

    name: str
    minimum: float | None
    maximum: float | None
    measured: float
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """The gate as `dmq compile --json` prints it; an infinite PSNR (equal images) is None."""
        return vars(self) | {"measured": self.measured if math.isfinite(self.measured) else None}


def check_gates(expect: Mapping[str, Gate], measured: Mapping[str, float]) -> tuple[GateResult, ...]:
    """Compare every gate with its measured value."""
    results = []
    for name, gate in expect.items():
        value = measured[name]
        passed = (gate.min is None or value >= gate.min) and (gate.max is None or value <= gate.max)
        results.append(GateResult(name, gate.min, gate.max, value, passed))
    return tuple(results)


def describe_failures(results: tuple[GateResult, ...]) -> str:
    """One line for every gate that does not hold."""
    lines = []
    for result in results:
        if not result.passed:
            wanted = [f"at least {result.minimum:g}"] if result.minimum is not None else []
            wanted += [f"at most {result.maximum:g}"] if result.maximum is not None else []
            lines.append(f"{result.name} is {result.measured:.6g}, expected {' and '.join(wanted)}")
    return "; ".join(lines)
