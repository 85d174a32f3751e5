"""Distillation without data: weights with low-rank updates and ranges by sampler step, learned on the teacher's path.

EfficientDM (He et al., arXiv:2310.03270) and MPQ-DM (Feng et al., arXiv:2412.11549).
"""

from __future__ import annotations

from typing import Any

from dmq_fx.budget import WHOLE_MODEL, scaled_iterations
from dmq_fx.distillation.options import DistillationOptions
from dmq_fx.distillation.student import Student, Teacher
from dmq_fx.distillation.trainer import Trainer
from dmq_fx.distillation.trajectory import check_timestep, sampler_steps
from dmq_fx.errors import CalibrationError
from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.planning import PlannedSite
from dmq_fx.program.program import PassContext, Program

FASTEST = (25.0, 50.0, 1.0)
"""How many times faster updates, scales of weights and ranges of activations are learned in shortened runs, at most.

Measured at 2-bit weights (docs/design.md): updates diverge at 200 and are rough at 50; ranges are worse at 10."""


@PASSES.register("lora_distill")
class LoraDistill:
    """Learns integers and ranges of its sites together and leaves both in the program; nothing is added at run time."""

    Options = DistillationOptions
    requires = frozenset({"calibrated"})
    ensures = frozenset({"assigned", "distilled"})
    before = frozenset({"assigned", "rounded", "bias_corrected", "output_corrected"})

    @staticmethod
    def run(program: Program, options: DistillationOptions, context: PassContext) -> PassResult:
        sites, left = _whole_weights(program, list(program.plan.for_pass("lora_distill")))
        if not any(planned.weight for planned in sites):
            raise CalibrationError(
                "no site has weights that lora_distill could learn",
                where="passes.lora_distill",
                hint="give the sites' scheme a `weight:`, and check the rules' `passes:`"
                + "".join(f"; {name!r} is left out: {reason}" for name, reason in list(left.items())[:1]),
            )
        if context.sampler is None:
            raise CalibrationError("lora_distill needs a sampler to learn along")
        check_timestep(program.traced, per_timestep=any(a.spec.per_timestep for a in program.activations))
        student = Student(program, sites, options, context.seed, feature=options.distance != "none")
        teacher = Teacher(program, feature=None)
        steps = sampler_steps(
            context.sampler,
            program.traced,
            timesteps=len(program.timesteps.unique()),
            calls=context.calibration.steps if context.calibration is not None else 0,
            predict=lambda arguments: teacher(arguments)[0],
        )
        wanted = scaled_iterations(options.iterations, context.budget, WHOLE_MODEL)
        trajectories = max(1, wanted // steps)
        speed = options.iterations / (trajectories * steps)
        trainer = Trainer(
            program,
            student,
            options,
            context,
            trajectories=trajectories,
            steps=steps,
            speed=tuple(max(1.0, min(speed, fastest)) for fastest in FASTEST),  # type: ignore[arg-type]
        )
        before = trainer.judge()
        start = {name: parameter.detach().clone() for name, parameter in student.trainable()}
        trainer.run()
        student.round_zero_points()  # what is judged is what is written, also where they were learned unrounded
        after = trainer.judge()
        kept = not after < before
        if kept:
            for name, parameter in student.trainable():
                parameter.data.copy_(start[name])
        student.export()
        losses = {"before": before, "after": after, "kept_nearest": kept}
        report: dict[str, Any] = {**trainer.report(), **losses, "left": left}
        return PassResult(tuple(sorted(planned.name for planned in sites)), report)


def _whole_weights(program: Program, sites: list[PlannedSite]) -> tuple[list[PlannedSite], dict[str, str]]:
    """The sites, without those whose weight another site reads that is not among them, and why."""
    names = {planned.name for planned in sites}
    shared = {p.site.weight for p in program.plan.sites if p.site.weight and p.name not in names}
    left = {p.name: "its weight is shared by a site that the pass leaves out" for p in sites if p.site.weight in shared}
    return [planned for planned in sites if planned.name not in left], left
