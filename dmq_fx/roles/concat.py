"""Roles around decoder/encoder concatenations: `skip_concat`, `skip_connection`, and where to split.

A decoder/encoder concat is a `cat` along channels of two features of which one is computed from the other: the
encoder's output went through the deeper levels and meets itself. Text and image tokens, rotary halves, or an attention
output beside a feed-forward one do not have that relation.
"""

from __future__ import annotations

from torch import fx

from dmq_fx.roles.dataflow import DataFlow
from dmq_fx.roles.values import aten, is_activation, is_arithmetic, is_norm, is_rearrangement, packet, shape


def skip_concats(flow: DataFlow) -> dict[fx.Node, int]:
    """The decoder/encoder concats of a graph, with the channels of their first part.

    The first part is the decoder's in every known model.
    """
    found = {}
    for node in flow.graph.nodes:
        if packet(node) is not aten.cat or len(node.args[0]) != 2 or not flow.on_sample(node):
            continue
        left, right = node.args[0]
        if not _along_channels(node) or not (flow.on_sample(left) and flow.on_sample(right)):
            continue
        if _deeper(flow, right, left) or _deeper(flow, left, right):
            found[node] = shape(left)[_dim(node)]
    return found


def skip_concat_sites(flow: DataFlow, concats: dict[fx.Node, int]) -> dict[fx.Node, int]:
    """Weighted sites that read a concat, itself or through norms and activations, with the split of their input."""
    found = {}
    for concat, split in concats.items():
        for node in flow.forward(concat, lambda node: _keeps_channels(flow, node)):
            if node in flow.operations and flow.operations[node].weighted:
                found[node] = split
    return found


def skip_connection_sites(flow: DataFlow, concats: dict[fx.Node, int]) -> set[fx.Node]:
    """Residual shortcuts of a concat: sites that read it as it is, and are added to a path that reads it too."""
    found = set()
    for concat in concats:
        for node in flow.forward(concat, _is_cast):
            if node in flow.operations and flow.operations[node].weighted and _joins(flow, node, concat):
                found.add(node)
    return found


def _joins(flow: DataFlow, site: fx.Node, concat: fx.Node) -> bool:
    for node in flow.forward(site, lambda node: is_rearrangement(node)):
        if packet(node) is not aten.add:
            continue
        others = [arg for arg in node.all_input_nodes if arg is not site and not flow.is_ancestor(site, arg)]
        if any(flow.is_ancestor(concat, other) for other in others):
            return True
    return False


def _deeper(flow: DataFlow, encoder: fx.Node, decoder: fx.Node) -> bool:
    """`decoder` is computed from `encoder` with a weighted site between."""
    if not flow.is_ancestor(encoder, decoder):
        return False
    return any(
        flow.is_ancestor(encoder, node) and (node is decoder or flow.is_ancestor(node, decoder))
        for node, operation in flow.operations.items()
        if operation.weighted
    )


def _along_channels(node: fx.Node) -> bool:
    """Channels are dimension 1 of images and video, and the last one of token sequences."""
    rank = len(shape(node))
    return _dim(node) == (rank - 1 if rank == 3 else 1)


def _dim(node: fx.Node) -> int:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return dim % len(shape(node))  # type: ignore[operator]


def _keeps_channels(flow: DataFlow, node: fx.Node) -> bool:
    """Norms, activations, resampling, and scales or shifts that do not come from the sample."""
    if is_norm(node) or is_activation(node) or _is_cast(node):
        return True
    if packet(node) in (aten.upsample_nearest2d, aten.avg_pool2d):
        return True
    return is_arithmetic(node) and sum(flow.on_sample(arg) for arg in node.all_input_nodes) == 1


def _is_cast(node: fx.Node) -> bool:
    return packet(node) in (aten.to, aten._to_copy, aten.contiguous, aten.clone)
