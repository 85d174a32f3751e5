"""Weights packed once, for graphs that are run without a compiler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from dmq_fx.lowering.onednn import PREPACK
from dmq_fx.program.graph_tools import drop_unread_tensors, finish, get_tensor, set_buffer


def fold_packed_weights(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Replace, in place, the packing of weights in every call by the packed weights; gives the module back."""
    graph = graph_module.graph
    for number, node in enumerate([n for n in graph.nodes if n.target in PREPACK]):
        name = f"dmq_packed_{number}"
        with torch.no_grad():
            packed = _value(graph_module, node)
        set_buffer(graph_module, name, packed)
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        node.replace_all_uses_with(constant)
    finish(graph_module)
    drop_unread_tensors(graph_module)
    return graph_module


def _value(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """What a node gives that depends on constants only."""
    if node.op == "get_attr":
        return get_tensor(module, str(node.target))

    def read(argument: Any) -> Any:
        return _value(module, argument) if isinstance(argument, fx.Node) else argument

    return node.target(*map_aggregate(node.args, read), **map_aggregate(node.kwargs, read))  # type: ignore[operator]
