"""What a weight costs at several widths: the error of every output channel, for all sites in one streaming pass.

An output channel's error depends on its own weights alone. So three numbers a channel give the error of every way to
deal out N - 1, N and N + 1 bits, and nothing is kept of the inputs: neither calls nor Gram matrices, which for a
convolution take kernel² · channels² numbers and more time than the products themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.local_loss import LocalLoss
from dmq_fx.calibration.streaming import call_site
from dmq_fx.errors import CalibrationError
from dmq_fx.numerics import QuantizedWeight
from dmq_fx.planning import PlannedSite
from dmq_fx.program.program import Program, along_inputs


class WidthErrors:
    """Sums of squared output errors by output channel, of every weight rounded to several widths.

    rounded: a weight's roundings by its name, each of W * gamma. inputs: rounds the inputs too, those of its sites;
    others' stay in full precision. sums: float64 [widths, out] by weight; rows: squares summed up, a number each.
    """

    def __init__(
        self, program: Program, rounded: Mapping[str, tuple[QuantizedWeight, ...]], inputs: LocalLoss | None = None
    ) -> None:
        self.program = program
        self.rounded = rounded
        self.inputs = inputs
        self.rows = dict.fromkeys(rounded, 0)
        self.sums = {
            name: torch.zeros(len(found), found[0].integers.shape[0], dtype=torch.float64)
            for name, found in rounded.items()
        }

    def add(self, planned: PlannedSite, args: tuple[Any, ...], output: Tensor, slot: Tensor | None) -> None:
        """Take in a site's full-precision call. Raises CalibrationError if its errors are not finite."""
        name = planned.site.weight or ""
        if name not in self.rounded:
            return
        axis = output.dim() - 1 if planned.site.op == "linear" else 1
        errors = [self._error(planned, args, output, slot, weight) for weight in self.rounded[name]]
        sums = torch.stack([error.double().square().movedim(axis, 0).flatten(1).sum(1) for error in errors]).cpu()
        if not bool(sums.isfinite().all()):
            raise CalibrationError("the outputs of this site are not finite", where=planned.name)
        self.sums[name] += sums
        self.rows[name] += output.numel() // output.shape[axis]

    def mean(self, weight: str) -> Tensor:
        """Each channel's part of the mean squared error over all outputs, float64 [widths, out]."""
        sums = self.sums[weight]
        return sums / max(1, self.rows[weight] * sums.shape[1])

    def _error(
        self, planned: PlannedSite, args: tuple[Any, ...], output: Tensor, slot: Tensor | None, weight: QuantizedWeight
    ) -> Tensor:
        x, rest = args[0].float(), [a.float() if isinstance(a, Tensor) else a for a in args[2:]]
        values, scaled = weight.dequantized(), self.program.scaled_weight(planned)
        if self.inputs is None or planned.name not in self.inputs.group_of:
            # full-precision inputs: what the error of the weight alone gives, without the bias
            delta = values - scaled
            gamma = self.program.input_scale(planned)
            delta = delta if gamma is None else delta / along_inputs(gamma, delta)
            return call_site(self.program, planned, (x, delta, *([None] if rest else []), *rest[1:]))
        gamma = self.program.input_scale(planned)
        rounded = self.inputs.rounded_input(planned, x, slot, x.new_ones(1) if gamma is None else gamma)
        return call_site(self.program, planned, (rounded, values, *rest)) - output.float()
