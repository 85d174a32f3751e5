"""What nodes of a traced graph hold: shapes as numbers, tensors, modules, and which ops only move or rescale values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_REARRANGE = frozenset(
    {
        aten.view,
        aten._unsafe_view,
        aten.reshape,
        aten.flatten,
        aten.unflatten,
        aten.transpose,
        aten.permute,
        aten.t,
        aten.numpy_T,
        aten.movedim,
        aten.unsqueeze,
        aten.squeeze,
        aten.expand,
        aten.contiguous,
        aten.clone,
        aten.to,
        aten._to_copy,
        aten.type_as,
        aten.alias,
        aten.detach,
        aten.roll,
        aten.view_as,
        aten.expand_as,
        aten.repeat,
        aten.repeat_interleave,
    }
)
_SELECT = frozenset(
    {
        aten.slice,
        aten.select,
        aten.chunk,
        aten.split,
        aten.split_with_sizes,
        aten.unbind,
        aten.narrow,
        aten.index,
        aten.index_select,
    }
)
_NORMS = frozenset(
    {aten.group_norm, aten.layer_norm, aten.rms_norm, aten.native_layer_norm, aten.native_group_norm, aten.batch_norm}
)
_ACTIVATIONS = frozenset(
    {
        aten.silu,
        aten.gelu,
        aten.relu,
        aten.leaky_relu,
        aten.hardswish,
        aten.mish,
        aten.tanh,
        aten.sigmoid,
        aten.softplus,
        aten.elu,
        aten.silu_,
        aten.relu_,
    }
)


def packet(node: fx.Node) -> Any:
    """The op of a call without its overload (`aten.add` for `aten.add.Tensor`); the target itself otherwise."""
    return getattr(node.target, "overloadpacket", node.target)


def is_tensor(node: fx.Node) -> bool:
    """True where the node's value is a tensor, or a list of them (`chunk`)."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, torch.Tensor) for item in value)
    return isinstance(value, torch.Tensor)


def shape(node: fx.Node) -> tuple[int, ...]:
    """The node's shape at the traced size; () where it is no tensor."""
    value = node.meta.get("val")
    return tuple(size(dim) for dim in value.shape) if isinstance(value, torch.Tensor) else ()


def size(dim: int | torch.SymInt) -> int:
    """A dimension as the number it had in the trace, without adding a guard."""
    return dim if isinstance(dim, int) else int(dim.node.hint)


def is_rearrangement(node: fx.Node) -> bool:
    """The node moves values or keeps some of them, and computes nothing."""
    if node.op != "call_function":
        return False
    op = packet(node)
    return op in _REARRANGE or op in _SELECT or getattr(op, "__name__", "") == "getitem"


def is_norm(node: fx.Node) -> bool:
    """A normalization that is one op."""
    return packet(node) in _NORMS


def is_activation(node: fx.Node) -> bool:
    """An elementwise nonlinearity that is one op."""
    return packet(node) in _ACTIVATIONS


def is_arithmetic(node: fx.Node) -> bool:
    """A sum, product, difference or quotient."""
    return packet(node) in (aten.add, aten.mul, aten.sub, aten.div, aten.addcmul)


def module_path(node: fx.Node) -> str:
    """Fully qualified name of the module whose code made this node; empty for the denoiser itself."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return entries[-1][0] if entries else ""
