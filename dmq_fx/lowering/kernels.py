"""Which sites an integer kernel can compute, and why the others cannot have one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dmq_fx.errors import BackendError
from dmq_fx.lowering.attention_sites import KERNEL as ATTENTION
from dmq_fx.lowering.attention_sites import why_no_attention, written_out_attention
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import call_arguments, nodes_by_name
from dmq_fx.program.program import Activation, Program
from dmq_fx.program.scaling import INT8, fits_shifted, largest_shift, sites_of

aten = torch.ops.aten

KERNELS: dict[Any, str] = {
    aten.conv1d.default: "int8 conv1d",
    aten.conv2d.default: "int8 conv2d",
    aten.conv3d.default: "int8 conv3d",
    aten.linear.default: "int8 linear",
}
"""Calls that oneDNN has an int8 kernel for: unsigned activations, signed weights, sums in int32."""


@dataclass(frozen=True)
class Kernel:
    """What a site runs on: the kernel's name, or None and the reason."""

    name: str | None
    reason: str = ""

    def __str__(self) -> str:
        return self.name or f"none: {self.reason}"


def int8_kernels(program: Program) -> dict[str, Kernel]:
    """The int8 kernel of every site by name, or why it has none; needs a program whose activations are grouped.

    A kernel holds integers only: activations of at most 8 bits with one scale for all channels once they are
    integers, weights whose integers fit int8 without their zero point, with a scale for every output channel at most.
    """
    nodes = nodes_by_name(program.traced.graph)
    attention = written_out_attention(program.traced.graph)
    specs = {planned.site.node: planned.activation for planned in program.plan.sites}
    found: dict[str, Kernel] = {}
    for planned in program.plan.sites:
        node = nodes[planned.site.node]
        if planned.quantized and planned.site.weight is None:
            reason, name = why_no_attention(node, attention.get(node.name), specs), ATTENTION
        else:
            reason, name = _why_not(program, planned, node), KERNELS.get(node.target)
        found[planned.name] = Kernel(None, reason) if reason else Kernel(name)
    return found


def _why_not(program: Program, planned: PlannedSite, node: fx.Node) -> str:
    weight, spec, target = planned.weight, planned.activation, node.target
    if weight is None and spec is None:
        return "full precision"
    if target not in KERNELS:
        return f"there is no int8 kernel for {target}"
    bias = call_arguments(node).get("bias")
    if target is not aten.linear.default and isinstance(bias, fx.Node) and bias.op != "get_attr":
        return "its bias is computed, and would take the activation's zero point up"
    if spec is None:
        return "its activations are in full precision"
    if weight is None:
        return "its weights are in full precision"
    if weight.granularity == "per_group":
        return "its weights have a scale for every group of inputs"
    if not weight.symmetric and planned.widest_bits > 7:
        return "8-bit weights less their zero point do not fit int8 (symmetric ones do, and 7 bits)"
    return _why_shifted(program, planned)


def _why_shifted(program: Program, planned: PlannedSite) -> str:
    """Why power-of-two shifts cannot go into the integers of a site's weights; empty if they can or there are none."""
    activation = program.activation_of(planned, 0)
    shifts = program.shifts.get(activation.index) if activation else None
    if activation is None or shifts is None or largest_shift(program, activation) is not None:
        return ""
    if shifts_at_run_time(program, activation):
        return ""
    if any(count > 1 for count in uses_of_weights(program, activation)):
        return "other sites use its weights with other shifts"
    return f"weights shifted left by up to {int(shifts.max())} bits do not fit int8 ({INT8.qmin}..{INT8.qmax})"


def uses_of_weights(program: Program, activation: Activation) -> list[int]:
    """How many sites use the weights of each site that reads an activation."""
    weights = [planned.site.weight for planned in program.plan.sites]
    return [weights.count(planned.site.weight) for planned in sites_of(program, activation)]


def shifts_at_run_time(program: Program, activation: Activation) -> bool:
    """Whether weights are shifted in every call, by the shifts of its timestep, and always fit int8."""
    shifts = program.shifts.get(activation.index)
    if shifts is None or shifts.shape[0] == 1 or not activation.spec.per_timestep:
        return False
    sites = sites_of(program, activation)
    return all(planned.weight is not None and fits_shifted(planned, int(shifts.max())) for planned in sites)


def require_kernels(expected: Mapping[str, Kernel], reached: Mapping[str, str]) -> None:
    """Raise BackendError unless exactly the sites with a kernel have reached it. reached: kernel by site."""
    wanted = {name: kernel.name for name, kernel in expected.items() if kernel.name}
    for name, kernel in wanted.items():
        if reached.get(name) != kernel:
            raise BackendError(
                f"site {name!r} did not reach its kernel",
                where=name,
                hint=f"planned {kernel}, found {reached.get(name, 'floating point')}; please report it with the recipe",
            )
    extra = next((name for name in reached if name not in wanted), None)
    if extra is not None:
        raise BackendError(f"site {extra!r} runs on {reached[extra]} without a plan to", where=extra)
