"""Int8 products that read one value, such as those of queries, keys and values, as one product.

A call of an operator costs as much as the arithmetic of a small one. The numbers are the same, bit for bit: each column
of a product is a sum of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dmq_fx.lowering.onednn import onednn
from dmq_fx.program.graph_tools import drop_unread_tensors, finish, get_tensor, record, set_buffer

aten = torch.ops.aten
_CALLS = (onednn.qlinear_pointwise.default, onednn.qlinear_pointwise.tensor)
_X, _WEIGHT, _SCALES, _ZERO_POINTS, _BIAS = 0, 3, 4, 5, 6
"""Places in the arguments of these calls."""


def join_linears(graph_module: fx.GraphModule) -> int:
    """Replace products of one value by one product and its parts, in place; how many calls that saves.

    Each part keeps the facts of its site.
    """
    groups: dict[Any, list[fx.Node]] = {}
    for node in graph_module.graph.nodes:
        if node.target in _CALLS and _constants(node):
            rest = (*node.args[1:_WEIGHT], *map(str, node.args[_BIAS + 1 :]))
            groups.setdefault((node.target, _source(node), rest), []).append(node)
    saved = 0
    for number, nodes in enumerate(nodes for nodes in groups.values() if len(nodes) > 1):
        _join(graph_module, nodes, f"dmq_joined_{number}")
        saved += len(nodes) - 1
    finish(graph_module)
    drop_unread_tensors(graph_module)
    return saved


def _constants(node: fx.Node) -> bool:
    """Whether weights, scales and bias are tensors of the graph as they are."""
    packed = node.args[_WEIGHT]
    if not isinstance(packed, fx.Node) or packed.target is not onednn.qlinear_prepack.default:
        return False
    sources = (packed.args[0], node.args[_SCALES], node.args[_BIAS])
    return all(source is None or (isinstance(source, fx.Node) and source.op == "get_attr") for source in sources)


def _source(node: fx.Node) -> fx.Node:
    x = node.args[_X]
    assert isinstance(x, fx.Node)
    return x.args[0] if x.target is aten.contiguous.default else x  # type: ignore[return-value]


def _join(module: fx.GraphModule, nodes: list[fx.Node], name: str) -> None:
    graph, first = module.graph, nodes[0]
    packed: list[Any] = [node.args[_WEIGHT] for node in nodes]
    weights = [get_tensor(module, str(each.args[0].target)) for each in packed]
    sizes = [len(weight) for weight in weights]

    def joined(what: str, parts: list[torch.Tensor]) -> fx.Node:
        set_buffer(module, f"{name}_{what}", torch.cat(parts))
        return graph.get_attr(f"{name}_{what}")

    def tensors(place: int) -> list[Any]:
        return [node.args[place] and get_tensor(module, str(node.args[place].target)) for node in nodes]  # type: ignore[union-attr]

    biases = tensors(_BIAS)
    with graph.inserting_before(first):
        weight = graph.call_function(onednn.qlinear_prepack.default, (joined("weight", weights), None))
        arguments: list[Any] = list(first.args)
        arguments[_WEIGHT] = weight
        arguments[_SCALES] = joined("scales", tensors(_SCALES))
        arguments[_ZERO_POINTS] = joined("zero_points", tensors(_ZERO_POINTS))
        if any(bias is not None for bias in biases):
            filled = [
                torch.zeros(size) if bias is None else bias.float() for bias, size in zip(biases, sizes, strict=True)
            ]
            arguments[_BIAS] = joined("bias", filled)
        call = record(graph.call_function(first.target, tuple(arguments)), kind="joined")  # type: ignore[arg-type]
        start = 0
        for node, size in zip(nodes, sizes, strict=True):
            part = graph.call_function(aten.slice.Tensor, (call, -1, start, start + size))
            part.meta = dict(node.meta)
            node.replace_all_uses_with(part, propagate_meta=False)
            start += size
    for node in nodes:
        graph.erase_node(node)
