"""How far the quantized model is from full precision: site by site and step by step, in decibels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.lockstep import Lockstep, SiteCall, prediction
from dmq_fx.calibration.store import CalibrationSet
from dmq_fx.calibration.streaming import batches, nearest_slot, quantized_output
from dmq_fx.program.output_shift import output_shift_rows
from dmq_fx.program.program import Program

CHUNK_ELEMENTS = 2**17
"""Values that are squared at once: few enough for a core's cache."""


class Power:
    """Sums of squares of a signal and of its error, by slot: float64 [slots] each."""

    def __init__(self, slots: int = 1) -> None:
        self.signal = torch.zeros(slots, dtype=torch.float64)
        self.noise = torch.zeros(slots, dtype=torch.float64)

    def add(self, exact: Tensor, approximate: Tensor, slot: Tensor | None = None) -> None:
        """slot: of every sample, [batch]; values whose first dimension is a multiple of it, or none, count alike."""
        by_row = slot is not None and exact.dim() > 0 and exact.shape[0] % len(slot) == 0
        rows = exact.shape[0] if by_row else 1
        signal, noise = _squares(exact.reshape(rows, -1), approximate.reshape(rows, -1))
        if slot is None:
            into = torch.zeros(1, dtype=torch.int64)
        else:
            into = (slot.repeat_interleave(rows // len(slot)) if by_row else slot[:1]).cpu()
        self.signal.index_add_(0, into, signal.cpu())
        self.noise.index_add_(0, into, noise.cpu())

    @property
    def sqnr_db(self) -> float | None:
        """10 log10(signal / noise) over all slots; None if there is no noise or no signal."""
        return _decibels(float(self.signal.sum()), float(self.noise.sum()))

    @property
    def by_slot(self) -> list[float | None]:
        """The same of every slot."""
        return [_decibels(*pair) for pair in zip(self.signal.tolist(), self.noise.tolist(), strict=True)]


def _squares(exact: Tensor, approximate: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squares of [rows, values] and of their error, float64 [rows]; few values at a time become float64."""
    signal = torch.zeros(len(exact), dtype=torch.float64, device=exact.device)
    noise = torch.zeros_like(signal)
    columns = max(1, CHUNK_ELEMENTS // max(1, len(exact)))
    for one, other in zip(exact.split(columns, 1), approximate.split(columns, 1), strict=True):
        values = one.double()
        signal += values.square().sum(1)
        noise += (values - other.double()).square_().sum(1)
    return signal, noise


def finite(value: float) -> float | None:
    """A number for a report: six digits, so that the last bits of a sum do not change a digest; None if it is none."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _decibels(signal: float, noise: float) -> float | None:
    if not (0.0 < noise < math.inf and 0.0 < signal < math.inf):
        return None
    return round(10 * math.log10(signal / noise), 3)


@dataclass
class Propagation:
    """Errors where they are made and what they add up to, on full precision's path through the sampler.

    local: of every quantized site's output for its full-precision input. accumulated: of every site's output for what
    the quantized sites before it give, those in full precision too. prediction_mse: of the model's output at every
    call, in order. predictions: what full precision predicts there.
    """

    local: dict[str, Power] = field(default_factory=dict)
    accumulated: dict[str, Power] = field(default_factory=dict)
    prediction_mse: list[float | None] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The part `errors` of report.json: SQNR in dB by site and slot, None without an error."""
        return {
            "prediction_mse_same_input": self.prediction_mse,
            "local_sqnr_db": {name: power.by_slot for name, power in self.local.items()},
            "accumulated_sqnr_db": {name: power.by_slot for name, power in self.accumulated.items()},
        }


def measure_propagation(
    program: Program,
    inputs: CalibrationSet,
    *,
    device: torch.device,
    limit: int,
    progress: Callable[[int], None],
    watch: Callable[[SiteCall], None] = lambda call: None,
) -> Propagation:
    """Run both models over `limit` batches of samples, side by side; watch: shown every site's call."""
    slots = max(1, len(program.timesteps))
    found = Propagation()

    def measure(call: SiteCall) -> None:
        name, slot = call.planned.name, call.slot
        if call.planned.quantized:
            approximate = quantized_output(program, call.planned, call.exact_args, slot, call.weight)
            found.local.setdefault(name, Power(slots)).add(call.exact, approximate, slot)
        found.accumulated.setdefault(name, Power(slots)).add(call.exact, call.quantized, slot)
        watch(call)

    run = Lockstep(program, measure)
    for done, arguments in batches(program.traced, inputs, device, limit):
        output = run.forward(arguments)
        exact, quantized = prediction(output.exact).double(), prediction(output.quantized).double()
        slot = nearest_slot(program, arguments)
        if program.output_shift is not None:
            quantized = quantized + output_shift_rows(program, slot).to(quantized)
        found.predictions.append(prediction(output.exact).cpu())
        found.prediction_mse.append(finite(float((exact - quantized).square().mean())))
        progress(done + 1)
    return found


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
