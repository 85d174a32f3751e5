"""Roles in residual blocks: `block_in`, `block_out`, `feed_forward`.

A residual block is a sum of features and of something computed from them, where the features may go through a
shortcut site first. `block_in` and `block_out` are the first and last weighted sites of its main path: a ResNet block's
`conv1` and `conv2`, a transformer's `proj_in` and `proj_out`, a feed-forward's two linears. Sites of an attention
(queries, keys, values, output) are left out: they have roles of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from dmq_fx.roles.dataflow import DataFlow
from dmq_fx.roles.operations import is_depthwise, is_pointwise
from dmq_fx.roles.values import aten, is_activation, is_arithmetic, is_rearrangement, packet, shape


@dataclass(frozen=True)
class ResidualBlock:
    """entry: the features that branch; end: the main path's operand of the sum; total: the sum."""

    entry: fx.Node
    end: fx.Node
    total: fx.Node


def residual_blocks(flow: DataFlow) -> list[ResidualBlock]:
    """The residual blocks of a graph that have a weighted site on their main path, in execution order."""
    blocks = []
    for node in flow.graph.nodes:
        if packet(node) not in (aten.add, aten.add_) or len(node.all_input_nodes) != 2:
            continue
        left, right = node.all_input_nodes
        if not (flow.on_sample(left) and flow.on_sample(right)):
            continue
        for shortcut, end in ((left, right), (right, left)):
            entry = _entry(flow, shortcut, end)
            if entry is not None and any(True for _ in main_path_sites(flow, entry, end)):
                blocks.append(ResidualBlock(entry, end, node))
                break
    return blocks


def main_path_sites(flow: DataFlow, entry: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
    """Weighted sites computed from `entry` that `end` is computed from."""
    for node, operation in flow.operations.items():
        if operation.weighted and flow.is_ancestor(entry, node) and (node is end or flow.is_ancestor(node, end)):
            yield node


def block_in_sites(flow: DataFlow, blocks: list[ResidualBlock], attention: set[fx.Node]) -> set[fx.Node]:
    """First weighted sites of each main path, without those of an attention."""
    found = set()
    for block in blocks:
        path = list(main_path_sites(flow, block.entry, block.end))
        found |= {node for node in path if not any(flow.is_ancestor(other, node) for other in path)}
    return found - attention


def block_out_sites(flow: DataFlow, blocks: list[ResidualBlock], attention: set[fx.Node]) -> set[fx.Node]:
    """Last weighted sites of each main path, without those of an attention."""
    found = set()
    for block in blocks:
        path = list(main_path_sites(flow, block.entry, block.end))
        found |= {node for node in path if not any(flow.is_ancestor(node, other) for other in path)}
    return found - attention


def feed_forward_sites(flow: DataFlow, blocks: list[ResidualBlock], attention: set[fx.Node]) -> set[fx.Node]:
    """Linears of a residual block with a nonlinearity or gate between, and no norm.

    A convolution of one position is a linear; a depthwise one may stand between (Sana) and then belongs to them.
    """
    paths = {node for block in blocks for node in main_path_sites(flow, block.entry, block.end)}
    linears = {node for node in paths if is_pointwise(flow.operations[node]) and len(shape(node)) >= 3}
    found = set()
    for node in linears - attention:
        behind = _behind_nonlinearity(flow, node) & paths
        if behind & linears:
            found |= {node} | behind
    return found


def _entry(flow: DataFlow, shortcut: fx.Node, end: fx.Node) -> fx.Node | None:
    """Where a block branches if `shortcut` is its residual: the shortcut itself, or the input of a shortcut site."""
    node = shortcut
    while is_rearrangement(node) and len(node.all_input_nodes) == 1 and not flow.is_ancestor(node, end):
        node = node.all_input_nodes[0]
    if flow.is_ancestor(node, end):
        return node
    operation = flow.operations.get(node)
    if operation is not None and operation.weighted and flow.is_ancestor(operation.inputs[0], end):
        return operation.inputs[0]
    return None


def _behind_nonlinearity(flow: DataFlow, site: fx.Node) -> set[fx.Node]:
    """Sites reached from `site` past a nonlinearity or a product of features, without a norm or a sum of features.

    Ways end at other sites, but for depthwise convolutions.
    """
    found = set()
    stack = [(user, False) for user in site.users]
    seen: set[tuple[fx.Node, bool]] = set()
    while stack:
        node, bent = stack.pop()
        if (node, bent) in seen:
            continue
        seen.add((node, bent))
        if node in flow.operations:
            found |= {node} if bent else set()
            if is_depthwise(flow.operations[node]):
                stack += [(user, bent) for user in node.users]
        elif is_activation(node) or _is_gate(flow, node):
            stack += [(user, True) for user in node.users]
        elif is_rearrangement(node) or packet(node) is aten.cat or _is_scaling(flow, node):
            stack += [(user, bent) for user in node.users]
    return found


def _is_gate(flow: DataFlow, node: fx.Node) -> bool:
    return packet(node) is aten.mul and sum(flow.on_sample(arg) for arg in node.all_input_nodes) == 2


def _is_scaling(flow: DataFlow, node: fx.Node) -> bool:
    return is_arithmetic(node) and sum(flow.on_sample(arg) for arg in node.all_input_nodes) == 1
