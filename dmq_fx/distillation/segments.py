"""Gradient checkpointing: a graph in segments, of which only the inputs are kept for the backward pass.

Each is run again when its gradients are due, so that memory holds the values of one of them. Nothing is counted in a
student's graph (slots are computed from the timestep), so the second run gives what the first gave.
"""

from __future__ import annotations

from collections.abc import Collection
from math import isqrt
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.split_module import split_module
from torch.utils.checkpoint import checkpoint


class Segment(nn.Module):
    """Runs a part of a graph; with gradients, its values are computed again for the backward pass."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *given: Any) -> Any:
        """given: the values of the segments before it; gives what later ones read."""
        if not torch.is_grad_enabled():
            return self.part(*given)
        return checkpoint(self.part, *given, use_reentrant=False, preserve_rng_state=False)


def in_segments(module: fx.GraphModule, sites: Collection[str]) -> fx.GraphModule:
    """The same graph, sharing tensors and modules, in about as many segments as the root of the number of its sites.

    sites: names of the nodes that segments have equally many of. Memory is then that of a root of the sites, twice. The
    last segment is not taken again, as its gradients are due at once.
    """
    segments = max(1, isqrt(len(sites)))
    place: dict[fx.Node, int] = {}
    constant: set[fx.Node] = set()
    seen = 0
    for node in module.graph.nodes:
        place[node] = min(seen * segments // max(1, len(sites)), segments - 1)
        seen += node.name in sites
        if node.op not in ("placeholder", "output") and constant.issuperset(node.all_input_nodes):
            constant.add(node)
    for node in reversed(module.graph.nodes):  # weights are computed where they are used, not all in front
        if node in constant and node.users:
            place[node] = min(place[user] for user in node.users)
    divided = split_module(module, module, lambda node: place[node])  # type: ignore[arg-type]
    names = [node.target for node in divided.graph.nodes if node.op == "call_module"]
    for name in names[:-1]:
        divided.set_submodule(name, Segment(divided.get_submodule(name)))
    return divided
