"""SmoothQuant (arXiv:2211.10438): equivalent scaling in closed form, from the largest values of both sides."""

from __future__ import annotations

from dataclasses import dataclass

from dmq_fx.calibration.extremes import channel_extremes, closed_form
from dmq_fx.errors import CalibrationError
from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.program.program import PassContext, Program
from dmq_fx.program.scaling_groups import scaling_groups
from dmq_fx.recipe.language import option


@dataclass(frozen=True, kw_only=True)
class SmoothQuantOptions:
    """Options of `smoothquant`."""

    alpha: float = option(
        "migration strength: 0 evens out the weights' channels, 1 the activations'",
        default=0.5,
        minimum=0.0,
        maximum=1.0,
    )


@PASSES.register("smoothquant")
class SmoothQuant:
    """gamma_j = max|X_j|^alpha / max|W_:j|^(1 - alpha), over all timesteps and all sites that read X."""

    Options = SmoothQuantOptions
    requires = frozenset({"grouped"})
    ensures = frozenset({"scaled"})
    before = frozenset({"scaled", "observed", "assigned", "rounded"})

    @staticmethod
    def run(program: Program, options: SmoothQuantOptions, context: PassContext) -> PassResult:
        if context.calibration is None:
            raise CalibrationError("smoothquant needs calibration inputs")
        groups, left = scaling_groups(program, "smoothquant")
        if not groups:
            return PassResult((), {"left": left})
        extremes = channel_extremes(program, groups, context, context.calibration)
        report = {}
        for group in groups:
            gamma = closed_form(program, group, extremes[group.activation.index], options.alpha)
            program.input_scales[group.activation.index] = gamma
            report[group.sites[0].name] = [round(float(gamma.min()), 5), round(float(gamma.max()), 5)]
        return PassResult(tuple(p.name for g in groups for p in g.sites), {"gamma": report, "left": left})
