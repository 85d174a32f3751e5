"""Equivalent scaling folded into the norm before it: the norm gives x / gamma, and the quantize node stays per tensor.

Where an activation, SiLU or a concat stands between, 1 / gamma goes into the quantize node's scale instead, which is
as free at run time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import Activation, Program
from dmq_fx.program.scaling import channel_axis

aten = torch.ops.aten
NORMS: dict[Any, tuple[int, int]] = {aten.group_norm.default: (2, 3), aten.layer_norm.default: (2, 3)}
"""Positions of weight and bias in a norm's arguments."""
KEEPING = (aten.contiguous.default, aten.clone.default)


def fold_norms(program: Program) -> None:
    """Divide the weight and bias of every norm that feeds only scaled sites by their gamma (`program.norms`)."""
    for activation in program.activations:
        gamma = program.input_scales.get(activation.index)
        norm = _norm(program, activation) if gamma is not None else None
        if gamma is None or norm is None:
            continue
        for position in NORMS[norm.target]:
            name = _tensor(norm, position)
            if name is not None:
                program.norms[name] = _divided(get_tensor(program.traced.graph_module, name), gamma)
        program.folded.add(activation.index)


def _divided(tensor: Tensor, gamma: Tensor) -> Tensor:
    return (tensor.detach().float() / gamma.to(tensor.device).float()).to(tensor.dtype)


def _norm(program: Program, activation: Activation) -> fx.Node | None:
    """The affine norm whose output, rearranged, is the activation and nothing else."""
    axis = channel_axis(program, activation)
    node = program.nodes[activation.producer]
    if axis is None or {user.name for user in node.users} != {name for name, _ in activation.consumers}:
        return None
    while node.target not in NORMS:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or len(source.users) != 1:
            return None
        moved = _axis_before(node, source, axis)
        if moved is None:
            return None
        node, axis = source, moved
    weight = _tensor(node, NORMS[node.target][0])
    channels = 1 if node.target == aten.group_norm.default else node.meta["val"].dim() - 1
    if weight is None or axis != channels or get_tensor(program.traced.graph_module, weight).dim() != 1:
        return None
    return node if _reads_alone(node) else None


def _axis_before(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Where the channels at `axis` of a rearrangement's result are in its source; None if they are not kept."""
    rank = source.meta["val"].dim()
    if node.target in KEEPING:
        return axis
    if node.target == aten.transpose.int:
        first, second = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
        return {first: second, second: first}.get(axis, axis)
    if node.target == aten.permute.default:
        return int(node.args[1][axis]) % rank  # type: ignore[index,arg-type]
    if node.target in (aten.view.default, aten.reshape.default):
        before, after = source.meta["val"].shape, node.meta["val"].shape
        kept = axis == len(after) - 1 and before[-1] == after[-1]
        return rank - 1 if kept else None
    return None


def _tensor(norm: fx.Node, position: int) -> str | None:
    value = norm.args[position] if len(norm.args) > position else None
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _reads_alone(norm: fx.Node) -> bool:
    """No other node reads the norm's parameters (a norm module that is called twice)."""
    names = {name for position in NORMS[norm.target] if (name := _tensor(norm, position)) is not None}
    readers = {
        user for node in norm.graph.nodes if node.op == "get_attr" and node.target in names for user in node.users
    }
    return readers == {norm}
