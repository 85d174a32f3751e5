"""How far every site is from full precision: signal to quantization noise, in decibels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.store import CalibrationSet
from dmq_fx.calibration.streaming import quantized_output, stream_sites
from dmq_fx.planning import PlannedSite
from dmq_fx.program.program import Program


@dataclass
class Power:
    """Sums of squares of a signal and of its error."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: Tensor, approximate: Tensor) -> None:
        self.signal += float(exact.double().square().sum())
        self.noise += float((exact.double() - approximate.double()).square().sum())

    @property
    def sqnr_db(self) -> float | None:
        """10 log10(signal / noise); None if there is no noise or no signal."""
        if self.noise <= 0.0 or self.signal <= 0.0:
            return None
        return round(10 * math.log10(self.signal / self.noise), 3)


def output_sqnr(
    program: Program,
    inputs: CalibrationSet,
    *,
    device: torch.device,
    limit: int,
    progress: Callable[[int], None],
) -> dict[str, float | None]:
    """SQNR of every quantized site's output for full-precision inputs, over `limit` batches of samples."""
    powers: dict[str, Power] = {}

    def measure(planned: PlannedSite, args: tuple[Any, ...], output: Tensor, slot: Tensor | None) -> None:
        powers.setdefault(planned.name, Power()).add(output, quantized_output(program, planned, args, slot))

    stream_sites(program, inputs, measure, device=device, limit=limit, progress=progress)
    return {name: power.sqnr_db for name, power in powers.items()}


def weight_sqnr(program: Program) -> dict[str, float | None]:
    """SQNR of every quantized weight (where its input is scaled: of W * gamma), by site."""
    found: dict[str, float | None] = {}
    for planned in program.plan.sites:
        weight = program.weights.get(planned.site.weight or "")
        if weight is not None:
            power = Power()
            exact = program.scaled_weight(planned)
            power.add(exact, weight.dequantized().to(exact.device))
            found[planned.name] = power.sqnr_db
    return found
