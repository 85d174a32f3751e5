"""Power-of-two scaling with voting, for activations whose channels differ too much for one scale.

DMQ (arXiv:2507.12933), section on channel-wise power-of-two scaling; ptq-methods 8.8. Channel c of an activation with
scale s gets the scale s 2^-k_c. Every sample votes for the k in 0..max_shift with the least error in its own values; a
channel takes the winner if enough samples agree, else k = 0, the full range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.streaming import stream_sites
from dmq_fx.errors import CalibrationError
from dmq_fx.numerics import IntegerGrid, dequantize, quantize
from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.planning import PlannedSite
from dmq_fx.program.program import Activation, PassContext, Program
from dmq_fx.program.scaling import channel_axis, largest_shift
from dmq_fx.recipe.language import option


@dataclass(frozen=True, kw_only=True)
class PtsOptions:
    """Options of `pts`."""

    sites: str = option(
        "which sites: the residual shortcuts of the decoder, or every site whose inputs can be scaled by channel",
        default="skip_connection",
        choices=("skip_connection", "all"),
    )
    max_shift: int = option("largest k: the finest scale is s / 2^max_shift", default=3, minimum=1, maximum=7)
    agreement: float = option(
        "share of the samples that must vote for a channel's k; k = 0 with fewer",
        default=0.85,
        minimum=0.0,
        maximum=1.0,
    )
    per_timestep: bool = option(
        "votes and shifts of every sampler step; false: one vote over all steps, whose shifts integer kernels can hold "
        "in one set of weights",
        default=False,
    )


@PASSES.register("pts")
class Pts:
    """Shifts for the channels of the activations that the pass is asked for."""

    Options = PtsOptions
    requires = frozenset({"calibrated"})
    ensures: frozenset[str] = frozenset()
    before = frozenset({"quantized", "distilled", "bias_corrected", "output_corrected"})

    @staticmethod
    def run(program: Program, options: PtsOptions, context: PassContext) -> PassResult:
        if context.calibration is None:
            raise CalibrationError("pts needs calibration inputs")
        asked = program.plan.for_pass("pts")
        wanted = {p.name for p in asked if options.sites == "all" or options.sites in p.site.roles}
        scaled, left = _eligible(program, wanted)
        if not scaled:
            return PassResult((), {"shifts": {}, "left": left})
        votes = count_votes(program, scaled, options, context)
        for activation in scaled:
            program.shifts[activation.index] = elect(votes[activation.index], options.agreement)
        return PassResult(
            tuple(site for a in scaled for site in a.sites), _report(program, scaled, options) | {"left": left}
        )

    @staticmethod
    def foresee(program: Program, options: PtsOptions) -> None:
        """Shifts as large as the votes may make them."""
        wanted = {
            p.name for p in program.plan.for_pass("pts") if options.sites == "all" or options.sites in p.site.roles
        }
        for activation in _eligible(program, wanted)[0]:
            axis = channel_axis(program, activation)
            assert axis is not None
            channels = program.nodes[activation.producer].meta["val"].shape[axis]
            by_slot = options.per_timestep and activation.spec.per_timestep
            shape = (len(program.timesteps) if by_slot else 1, channels)
            program.shifts[activation.index] = torch.full(shape, options.max_shift, dtype=torch.int64)


def _eligible(program: Program, wanted: set[str]) -> tuple[list[Activation], dict[str, str]]:
    """The activations to shift, and why sites that were asked for are left."""
    scaled: list[Activation] = []
    left = {p.name: "not_shifted: its input stays in full precision" for p in program.plan.sites if p.name in wanted}
    for activation in program.activations:
        asked = [site for site in activation.sites if site in wanted]
        left |= dict.fromkeys(asked, "not_shifted: no integer weight sums over the channels of its input")
        if asked and channel_axis(program, activation) is not None:
            left |= dict.fromkeys(asked, "not_shifted: another site reads the same integers")
            if len(asked) == len(activation.sites):
                scaled.append(activation)
                left = {name: reason for name, reason in left.items() if name not in asked}
    return scaled, left


def count_votes(
    program: Program, activations: list[Activation], options: PtsOptions, context: PassContext
) -> dict[int, Tensor]:
    """How many samples voted for each k: int64 [slots or 1, channels, max_shift + 1], by activation index."""
    by_site = {activation.sites[0]: activation for activation in activations}
    votes: dict[int, Tensor] = {}

    def collect(planned: PlannedSite, args: tuple[Any, ...], output: Tensor, slot: Tensor | None) -> None:
        activation = by_site.get(planned.name)
        if activation is None:
            return
        choice = best_shifts(program, activation, args[0], slot, options.max_shift)
        rows, slots = torch.zeros(len(choice), dtype=torch.int64), 1
        if options.per_timestep and activation.spec.per_timestep and slot is not None:
            rows, slots = slot.repeat_interleave(len(choice) // len(slot)), len(program.timesteps)
        shape = (slots, choice.shape[1], options.max_shift + 1)
        counts = votes.setdefault(activation.index, torch.zeros(shape, dtype=torch.int64))
        counts.index_add_(0, rows.cpu(), torch.nn.functional.one_hot(choice, shape[2]).cpu())

    assert context.calibration is not None
    total = len(context.calibration) * context.calibration.steps
    stream_sites(
        program,
        context.calibration,
        collect,
        device=context.device,
        limit=None,
        progress=lambda done: context.progress("voting", done, total),
    )
    return votes


def best_shifts(program: Program, activation: Activation, x: Tensor, slot: Tensor | None, max_shift: int) -> Tensor:
    """The k with the least squared error, of every sample and channel: int64 [samples, channels]."""
    axis = channel_axis(program, activation)
    assert axis is not None
    values = x.float()
    gamma = program.input_scales.get(activation.index)
    if gamma is not None:
        values = values / gamma.to(values).reshape(-1, *([1] * (x.dim() - 1 - axis)))
    values = values.movedim(axis, 1).flatten(2) if x.dim() > 2 else values[:, :, None]
    scale, zero_point = (part.to(x.device) for part in program.qparams[activation.index])
    if activation.spec.per_timestep:
        assert slot is not None
        rows = slot.repeat_interleave(activation.batch_multiple)
        scale, zero_point = scale[rows], zero_point[rows]
    return least_error_shifts(
        values,
        scale[:, None, None],
        zero_point[:, None, None],
        IntegerGrid(activation.spec.bits, activation.spec.symmetric),
        max_shift,
    )


def least_error_shifts(x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid, max_shift: int) -> Tensor:
    """argmin over k in 0..max_shift of the mean (x - Q(x; scale 2^-k))^2 over the last axis; the smallest k of equals.

    x: [samples, channels, values]; scale, zero_point broadcast against it.
    """
    errors = []
    for shift in range(max_shift + 1):
        finer = scale * 2.0**-shift
        errors.append((dequantize(quantize(x, finer, zero_point, grid), finer, zero_point) - x).square_().mean(2))
    return torch.stack(errors).argmin(0)


def elect(votes: Tensor, agreement: float) -> Tensor:
    """k of every channel, int64 [..., channels], from votes [..., channels, candidates].

    The most voted k (the smallest of equals) if at least `agreement` of the votes are for it, else 0.
    """
    most, winner = votes.max(-1)
    agreed = most >= agreement * votes.sum(-1) - 1e-9
    return torch.where(agreed, winner, torch.zeros_like(winner))


def _report(program: Program, activations: list[Activation], options: PtsOptions) -> dict[str, Any]:
    """Share of the channels with each k, and whether the shifts went into the integers of the weights."""
    rows = {}
    for activation in activations:
        shifts = program.shifts[activation.index]
        shares = torch.bincount(shifts.flatten(), minlength=options.max_shift + 1).float() / shifts.numel()
        rows[activation.sites[0]] = {
            "shares": [round(float(share), 4) for share in shares],
            "in_weights": largest_shift(program, activation) is not None,
        }
    return {"shifts": rows}
