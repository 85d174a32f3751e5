"""Moving a graph to another device: the device arguments that tracing wrote into it."""

from __future__ import annotations

import torch
from torch import fx


def retarget(graph_module: fx.GraphModule, device: torch.device | str) -> None:
    """Rewrite every device argument of the graph, in place; the tensors are moved with `graph_module.to(device)`."""
    target = torch.device(device)
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        node.args = tuple(target if isinstance(value, torch.device) else value for value in node.args)
        if isinstance(node.kwargs.get("device"), torch.device):
            node.kwargs = {**node.kwargs, "device": target}
    graph_module.recompile()
