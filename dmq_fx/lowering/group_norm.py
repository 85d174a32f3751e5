"""Group normalization whose sums run over pixels first, so that channels that lie side by side are added side by side.

Inductor reduces a group at once: with channels last a group is a few channels wide, and a vector register stays nearly
empty. Sums by channel fill it. The way from groups back to channels is a small product with a matrix of zeros and ones:
an operator of its own, so that its result is a row of numbers that lie side by side too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dmq_fx.lowering.bfloat16 import FLOAT
from dmq_fx.program.graph_tools import call_arguments, finish, record, set_buffer

aten = torch.ops.aten


def decompose_group_norms(graph_module: fx.GraphModule, centered: bool = False) -> int:
    """Replace group norms of images, in place, by two sums over pixels and small arithmetic; how many were replaced.

    Computed in float32. centered: the variance is that of values less their mean, which takes another pass over the
    image; without it, the mean square less the square of the mean: for bfloat16 values, whose own rounding is coarser
    than what that difference loses. The result is float32.
    """
    nodes = [n for n in graph_module.graph.nodes if n.target is aten.group_norm.default]
    replaced = sum(_decompose(graph_module, node, centered) for node in nodes)
    finish(graph_module)
    return replaced


def _decompose(module: fx.GraphModule, node: fx.Node, centered: bool) -> bool:
    given = call_arguments(node)
    shape = given["input"].meta["val"].shape
    channels, groups = shape[1], given["num_groups"]
    pixels = shape[2:]
    if len(shape) < 4 or not all(isinstance(size, int) for size in shape[1:]):
        return False
    width = channels // groups
    count = width
    for size in pixels:
        count *= size
    dims, ones = list(range(2, len(shape))), [1] * len(pixels)
    graph = node.graph

    def call(target: Any, *arguments: Any) -> fx.Node:
        return record(graph.call_function(target, arguments), kind=FLOAT)

    def by_group(values: fx.Node) -> fx.Node:
        """Mean over a group's channels and pixels, [batch, groups]."""
        sums = call(aten.reshape.default, call(aten.sum.dim_IntList, values, dims), [-1, groups, width])
        return call(aten.mul.Tensor, call(aten.sum.dim_IntList, sums, [2]), 1.0 / count)

    def by_channel(values: fx.Node) -> fx.Node:
        """[batch, groups] to [batch, channels]."""
        return call(aten.mm.default, values, graph.get_attr(_members(module, channels, groups)))

    def half(values: fx.Node, which: int) -> fx.Node:
        """Half `which` of [2 * batch, channels], to stand beside the image."""
        return call(aten.select.int, call(aten.reshape.default, values, [2, -1, channels, *ones]), 0, which)

    def parameter(name: str) -> fx.Node:
        return call(aten.reshape.default, given[name], [channels, *ones])

    with graph.inserting_before(node):
        x = call(aten.to.dtype, given["input"], torch.float32)
        mean = by_group(x)
        if centered:
            x = call(aten.sub.Tensor, x, call(aten.reshape.default, by_channel(mean), [-1, channels, *ones]))
            variance = by_group(call(aten.mul.Tensor, x, x))
        else:
            square = by_group(call(aten.mul.Tensor, x, x))
            difference = call(aten.sub.Tensor, square, call(aten.mul.Tensor, mean, mean))
            variance = call(aten.clamp_min.default, difference, 0.0)
        factor = call(aten.rsqrt.default, call(aten.add.Tensor, variance, given.get("eps", 1e-5)))
        if centered:
            result = call(aten.mul.Tensor, x, call(aten.reshape.default, by_channel(factor), [-1, channels, *ones]))
        else:
            wide = by_channel(call(aten.cat.default, [factor, call(aten.mul.Tensor, mean, factor)]))
            result = call(aten.sub.Tensor, call(aten.mul.Tensor, x, half(wide, 0)), half(wide, 1))
        if given.get("weight") is not None:
            result = call(aten.mul.Tensor, result, parameter("weight"))
        if given.get("bias") is not None:
            result = call(aten.add.Tensor, result, parameter("bias"))
    result.meta |= {"val": node.meta["val"]}
    node.replace_all_uses_with(result, propagate_meta=False)
    graph.erase_node(node)
    return True


def _members(module: fx.GraphModule, channels: int, groups: int) -> str:
    """Name of the matrix [groups, channels] that is 1 where a channel belongs to a group."""
    name = f"dmq.groups_{channels}_{groups}"
    if name not in dict(module.named_buffers()):
        set_buffer(module, name, torch.eye(groups).repeat_interleave(channels // groups, 1))
    return name
