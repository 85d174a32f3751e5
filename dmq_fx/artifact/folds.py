"""What went into a site beside its precision, for its row in `quantization.json`: gamma, shifts, split, zero points."""

from __future__ import annotations

from typing import Any

from dmq_fx.planning import PlannedSite
from dmq_fx.program.program import Program
from dmq_fx.program.scaling import largest_shift
from dmq_fx.sites import part_of


def site_folds(program: Program, planned: PlannedSite) -> dict[str, Any]:
    """The facts that hold for a site, by name; empty where nothing was done to it.

    gamma: smallest and largest, and where 1 / gamma went (`norm` or `quantize`). shift: the largest k, the share of
    channels (and timesteps) with one, and where 2^-k went (`weights` or `activation`). split: which half of a concat,
    or which product of attention. zero_point: smallest and largest of the input's, over the timesteps. bias: it was
    replaced.
    """
    folds: dict[str, Any] = {}
    part = part_of(planned.name, program.splits)
    if part is not None:
        folds["split"] = part
    if planned.site.bias in program.biases:
        folds["bias"] = "corrected"
    activation = program.activation_of(planned, planned.site.operands[0]) if planned.site.operands else None
    if activation is None:
        return folds
    gamma = program.input_scale(planned)
    if gamma is not None:
        place = "norm" if activation.index in program.folded else "quantize"
        ends = [float(f"{float(end):.6g}") for end in (gamma.min(), gamma.max())]
        folds["gamma"] = {"min": ends[0], "max": ends[1], "in": place}
    shifts = program.shifts.get(activation.index)
    if shifts is not None:
        place = "activation" if largest_shift(program, activation) is None else "weights"
        share = float(f"{float((shifts > 0).float().mean()):.4g}")
        folds["shift"] = {"max": int(shifts.max()), "share": share, "in": place}
    if activation.index in program.qparams and not activation.spec.symmetric:
        zero_point = program.qparams[activation.index].zero_point
        folds["zero_point"] = [int(zero_point.min()), int(zero_point.max())]
    return folds
