"""The features that teacher and student are compared by, found from the data flow in front of the last layer.

MPQ-DM (arXiv:2412.11549) takes the output of the last decoder block: what the final norm, SiLU and convolution of a
UNet, or the final norm, its modulation and linear layer of a transformer make the prediction of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from dmq_fx.errors import CalibrationError
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import nodes_by_name
from dmq_fx.program.program import Program
from dmq_fx.roles.dataflow import DataFlow, data_flow
from dmq_fx.roles.values import aten, is_activation, is_arithmetic, is_norm, is_rearrangement, packet

_CHANNELS_FIRST = (aten.group_norm, aten.native_group_norm, aten.batch_norm)


@dataclass(frozen=True)
class Feature:
    """node: its name in the full-precision graph, and in every copy of it. channel_axis: of its value."""

    node: str
    channel_axis: int


def find_feature(program: Program, kind: str) -> Feature:
    """Where features are taken. Raises CalibrationError if no site writes the prediction.

    kind: "last_block", the input of the norm between the last block and the last layer (of the first, if there are
    two). For "last_layer", and where there is no norm or one that is not one operator, the input of the site of role
    `last`.
    """
    planned = _last_site(program)
    node = program.nodes[planned.site.node].args[planned.site.operands[0]]
    assert isinstance(node, fx.Node)
    found = Feature(node.name, _rank(node) - 1 if planned.site.op == "linear" else 1)
    flow = data_flow(program.traced)
    before: fx.Node | None = node if kind == "last_block" else None
    while before is not None:
        node, before = before, _before(before, flow)
        if before is not None and is_norm(node):
            found = Feature(before.name, _channel_axis(node, before))
    return found


def add_feature(module: fx.GraphModule, program: Program, kind: str) -> None:
    """Make the graph, full-precision or with observers in it, give the features as well, before they are quantized."""
    graph = module.graph
    source = nodes_by_name(graph)[find_feature(program, kind).node]
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ((output.args[0], source),)


def split_feature(output: object, feature: bool) -> tuple[Tensor, Tensor | None]:
    """The prediction, and the features where the graph gives them."""
    found = None
    if feature:
        output, found = output  # type: ignore[misc]
    while isinstance(output, (tuple, list)):
        output = output[0]
    assert isinstance(output, Tensor)
    return output, found


def _last_site(program: Program) -> PlannedSite:
    found = [planned for planned in program.plan.sites if "last" in planned.site.roles]
    if not found:
        raise CalibrationError(
            "no site of this model has the role `last`, in front of which features are compared",
            where=program.traced.class_name,
            hint="use passes.lora_distill.distance: none",
        )
    return found[-1]


def _before(node: fx.Node, flow: DataFlow) -> fx.Node | None:
    """What a norm, an activation, a rearrangement or a modulation (by what the sample has no part in) is taken of."""
    known = is_norm(node) or is_activation(node) or is_rearrangement(node) or is_arithmetic(node)
    sources = [given for given in node.args if isinstance(given, fx.Node) and flow.on_sample(given)]
    return sources[0] if known and len(sources) == 1 and node not in flow.operations else None


def _channel_axis(norm: fx.Node, source: fx.Node) -> int:
    if packet(norm) in _CHANNELS_FIRST:
        return 1
    normalized: Any = norm.args[1]
    return _rank(source) - len(normalized)


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].dim())
