"""Output correction: take the mean error off the model's prediction, at every sampler step.

The bias correction of PTQD (He et al., arXiv:2305.10657): quantization noise has a mean, by channel and timestep, that
is known after calibration. It matters more than its size: a shift that keeps its sign adds up over the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dmq_fx.calibration.lockstep import Lockstep, prediction
from dmq_fx.calibration.streaming import batches, nearest_slot
from dmq_fx.errors import CalibrationError
from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.program.output_shift import output_axis
from dmq_fx.program.program import PassContext, Program
from dmq_fx.recipe.language import option


@dataclass(frozen=True, kw_only=True)
class OutputCorrectionOptions:
    """Options of `output_correction`."""

    batches: int = option("calibration batches that the mean is taken over, all their steps", default=2, minimum=1)
    per_timestep: bool = option("a mean of every sampler step; false: one over all steps", default=True)


@PASSES.register("output_correction")
class OutputCorrection:
    """Adds the mean error of every output channel and sampler step to the prediction, as a table in the graph.

    Under classifier-free guidance a denoiser call has two rows an image, and one mean is taken over both: what the two
    do not share is left.
    """

    Options = OutputCorrectionOptions
    requires = frozenset({"calibrated", "rounded"})
    ensures = frozenset({"output_corrected"})

    @staticmethod
    def run(program: Program, options: OutputCorrectionOptions, context: PassContext) -> PassResult:
        if context.calibration is None:
            raise CalibrationError("output_correction needs calibration inputs")
        axis = output_axis(program.traced)
        by_slot = options.per_timestep and program.timestep_position is not None
        slots = len(program.timesteps) if by_slot else 1
        total = min(options.batches, len(context.calibration)) * context.calibration.steps
        run, sums, rows = Lockstep(program), None, torch.zeros(slots, dtype=torch.float64)
        for done, arguments in batches(program.traced, context.calibration, context.device, options.batches):
            outputs = run.forward(arguments)
            error = (prediction(outputs.exact).double() - prediction(outputs.quantized).double()).movedim(axis, 1)
            means = error.flatten(2).mean(2).cpu()
            slot = nearest_slot(program, arguments) if by_slot else None
            where = torch.zeros(len(means), dtype=torch.int64) if slot is None else slot.cpu().expand(len(means))
            sums = torch.zeros(slots, means.shape[1], dtype=torch.float64) if sums is None else sums
            sums.index_add_(0, where, means)
            rows.index_add_(0, where, torch.ones(len(means), dtype=torch.float64))
            context.progress("output correction", done + 1, total)
        assert sums is not None
        program.output_shift = (sums / rows.clamp(min=1)[:, None]).float()
        largest = program.output_shift.abs().amax(1)
        return PassResult((), {"largest_shift": [round(value, 6) for value in largest.tolist()]})
