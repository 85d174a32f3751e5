"""What follows from weights alone, computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from dmq_fx.heap import give_back
from dmq_fx.lowering.onednn import PREPACK
from dmq_fx.program.graph_tools import drop_tensor, drop_unread_tensors, finish, get_tensor, set_buffer

HELD_BYTES = 2**26
"""Weights that are computed before the memory of what they came from is given back."""


def fold_packed_weights(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Replace, in place, the packing of weights in every call by the packed weights; gives the module back."""
    return fold_nodes(graph_module, [n for n in graph_module.graph.nodes if n.target in PREPACK], "dmq_packed")


def fold_nodes(graph_module: fx.GraphModule, nodes: Sequence[fx.Node], prefix: str) -> fx.GraphModule:
    """Replace nodes that depend on constants only by what they give, in place; gives the module back.

    A weight is let go as soon as what follows from it is there, and its memory given back, so that few are held twice.
    prefix: of the new tensors' names.
    """
    give_back()
    graph = graph_module.graph
    held = 0
    readers = Counter(str(node.target) for node in graph.nodes if node.op == "get_attr")
    for number, node in enumerate(nodes):
        name = f"{prefix}_{number}"
        with torch.no_grad():
            value = _value(graph_module, node)
        set_buffer(graph_module, name, value)
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        readers[name] += 1
        node.replace_all_uses_with(constant)
        _erase(graph_module, node, readers)
        held += value.nbytes if value.layout == torch.strided else torch.ops.mkldnn._nbytes(value)
        if held >= HELD_BYTES:
            held = 0
            give_back()
    give_back()
    finish(graph_module)
    drop_unread_tensors(graph_module)
    return graph_module


def _erase(module: fx.GraphModule, node: fx.Node, readers: Counter[str]) -> None:
    """Take out a node without users, what only it has used, and the tensors that nothing reads any more."""
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    if node.op == "get_attr":
        readers[str(node.target)] -= 1
        if not readers[str(node.target)]:
            drop_tensor(module, str(node.target))
    for source in sources:
        if not source.users and source.op in ("get_attr", "call_function"):
            _erase(module, source, readers)


def _value(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """What a node gives that depends on constants only."""
    if node.op == "get_attr":
        return get_tensor(module, str(node.target))

    def read(argument: Any) -> Any:
        return _value(module, argument) if isinstance(argument, fx.Node) else argument

    return node.target(*map_aggregate(node.args, read), **map_aggregate(node.kwargs, read))  # type: ignore[operator]
