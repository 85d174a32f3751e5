"""Roles by place in the network: `first`, `last`, `upsample`, `downsample`."""

from __future__ import annotations

from torch import fx

from dmq_fx.roles.dataflow import DataFlow
from dmq_fx.roles.operations import kernel_stride
from dmq_fx.roles.values import aten, is_activation, is_norm, is_rearrangement, packet

_UPSAMPLES = frozenset(
    {
        aten.upsample_nearest1d,
        aten.upsample_nearest2d,
        aten.upsample_nearest3d,
        aten._upsample_nearest_exact2d,
        aten.upsample_bilinear2d,
        aten.upsample_bicubic2d,
        aten.upsample_trilinear3d,
        aten.conv_transpose1d,
        aten.conv_transpose2d,
        aten.conv_transpose3d,
        aten.pixel_shuffle,
    }
)


def first_sites(flow: DataFlow) -> set[fx.Node]:
    """Weighted sites that read the noisy sample alone, with no other site between: `conv_in`, patch embeddings."""
    found = set()
    for node, operation in flow.operations.items():
        earlier = any(
            flow.is_ancestor(other, node) for other in flow.operations if flow.index(other) < flow.index(node)
        )
        if operation.weighted and flow.depends(node) == flow.sample and not earlier:
            found.add(node)
    return found


def last_site(flow: DataFlow) -> set[fx.Node]:
    """The last weighted site that the output is computed from with no other site between: `conv_out`, `proj_out`."""
    output = next(node for node in flow.graph.nodes if node.op == "output")
    reached = flow.backward(output, lambda node: node not in flow.operations)
    ends = [node for node in reached if node in flow.operations and flow.operations[node].weighted]
    return {max(ends, key=flow.index)} if ends else set()


def upsample_sites(flow: DataFlow) -> set[fx.Node]:
    """Convolutions right after an interpolation; norms and activations may stand between."""

    def through(node: fx.Node) -> bool:
        return is_rearrangement(node) or is_norm(node) or is_activation(node)

    found = set()
    for start in flow.graph.nodes:
        if start.op == "call_function" and packet(start) in _UPSAMPLES and flow.on_sample(start):
            found |= {node for node in flow.forward(start, through) if _is_convolution(flow, node)}
    return found


def downsample_sites(flow: DataFlow) -> set[fx.Node]:
    """Convolutions with a stride, but for the patch embedding, which is `first`."""
    first = first_sites(flow)
    found = set()
    for node, operation in flow.operations.items():
        _, stride = kernel_stride(operation)
        if any(step > 1 for step in stride) and node not in first and flow.on_sample(node):
            found.add(node)
    return found


def _is_convolution(flow: DataFlow, node: fx.Node) -> bool:
    return node in flow.operations and flow.operations[node].kind.startswith("conv")
