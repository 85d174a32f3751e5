"""Does an activation follow the batch? Only then can every sample have the range of its own timestep."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from dmq_fx.tracing import TracedModel


def batch_multiple(value: Any, traced: TracedModel) -> int:
    """k if the first axis of `value` (a node) is k times the batch, else 0.

    k > 1 where a model folds another axis into the batch (frames of a video), batch outermost.
    """
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return 0
    if value.meta["val"].dim() == 0:
        return 0
    size = _expression(value.meta["val"].shape[0])
    timestep = next(node for node in traced.graph.nodes if node.name == traced.timestep)
    batch = _expression(timestep.meta["val"].shape[0])
    if not size.free_symbols or not batch.free_symbols:
        return 0
    ratio = sympy.simplify(size / batch)
    return int(ratio) if ratio.is_Integer else 0


def _expression(size: Any) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
