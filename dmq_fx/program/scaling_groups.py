"""Which activations can be scaled by channel, and with which weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dmq_fx.planning import PlannedSite
from dmq_fx.program.program import Activation, Program
from dmq_fx.program.scaling import channel_axis, sites_of


@dataclass(frozen=True)
class ScalingGroup:
    """An activation and the sites that read it: they share one gamma (to_q, to_k, to_v)."""

    activation: Activation
    sites: tuple[PlannedSite, ...]
    axis: int
    channels: int


def scaling_groups(program: Program, pass_name: str) -> tuple[tuple[ScalingGroup, ...], dict[str, str]]:
    """The groups that a pass may scale, and why sites that it is asked for are left: typed reasons by site."""
    wanted = {planned.name for planned in program.plan.for_pass(pass_name)}
    uses = Counter(planned.site.weight or "" for planned in program.plan.sites if planned.site.weight)
    groups: list[ScalingGroup] = []
    left: dict[str, str] = {}
    for planned in program.plan.for_pass(pass_name):
        if planned.activation is None:
            left[planned.name] = "not_scaled: its input stays in full precision"
    for activation in program.activations:
        asked = [site for site in activation.sites if site in wanted]
        if not asked:
            continue
        axis, sites = channel_axis(program, activation), sites_of(program, activation)
        reason = None
        if axis is None:
            reason = (
                "not_scaled: no integer weight sums over the channels of its input "
                "(a product, a grouped convolution, a weight in full precision)"
            )
        elif program.traced.timestep and activation.batch_multiple == 0:
            reason = "not_scaled: its input does not follow the batch"
        elif len(asked) < len(activation.sites):
            reason = f"not_scaled: {next(s for s in activation.sites if s not in wanted)!r} reads the same integers"
        elif any(uses[planned.site.weight or ""] > 1 for planned in sites):
            reason = "not_scaled: its weight is shared with another site"
        if reason is not None or axis is None:
            left |= dict.fromkeys(asked, reason or "")
            continue
        groups.append(ScalingGroup(activation, sites, axis, sites[0].site.shape[1]))
    return tuple(groups), left
