"""Bias correction: take the mean error that rounding adds to every output channel off its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), section
4.2, in its empirical form: E[y - Q(y)] over the calibration inputs, per output channel, added to the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.streaming import quantized_output, stream_sites
from dmq_fx.errors import CalibrationError
from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import PassContext, Program
from dmq_fx.recipe.language import option


@dataclass(frozen=True, kw_only=True)
class BiasCorrectionOptions:
    """Options of `bias_correction`."""

    batches: int = option("calibration batches that the mean is taken over", default=1, minimum=1)


@PASSES.register("bias_correction")
class BiasCorrection:
    """Adds the mean output error of every channel to the bias of sites that have one."""

    Options = BiasCorrectionOptions
    requires = frozenset({"calibrated", "rounded"})
    ensures: frozenset[str] = frozenset()

    @staticmethod
    def run(program: Program, options: BiasCorrectionOptions, context: PassContext) -> PassResult:
        if context.calibration is None:
            raise CalibrationError("bias_correction needs calibration inputs")
        wanted = {p.name for p in program.plan.for_pass("bias_correction") if p.site.bias}
        sums: dict[str, Tensor] = {}
        rows: dict[str, int] = {}

        def collect(planned: PlannedSite, args: tuple[Any, ...], output: Tensor, slot: Tensor | None) -> None:
            name = planned.site.bias or ""
            if planned.name not in wanted:
                return
            error = (output - quantized_output(program, planned, args, slot)).double()
            axis = output.dim() - 1 if planned.site.op == "linear" else 1
            channels = error.movedim(axis, 0).flatten(1)
            sums[name] = sums.get(name, torch.zeros(len(channels))).to(channels) + channels.sum(1)
            rows[name] = rows.get(name, 0) + channels.shape[1]

        stream_sites(
            program,
            context.calibration,
            collect,
            device=context.device,
            limit=options.batches,
            progress=lambda done: context.progress("bias correction", done, 0),
        )
        largest = 0.0
        for name, total in sums.items():  # a bias that sites share takes their mean
            shift = total / rows[name]
            bias = program.biases.get(name, get_tensor(program.traced.graph_module, name).detach())
            program.biases[name] = (bias.double() + shift).to(bias.dtype)
            largest = max(largest, float(shift.abs().max()))
        return PassResult(tuple(sorted(wanted)), {"largest_shift": largest})
