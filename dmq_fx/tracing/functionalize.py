"""Replacing in-place operations by ones that return their result, so that a graph's edges are its data flow."""

from __future__ import annotations

import torch
from torch import fx

from dmq_fx.errors import TraceError

aten = torch.ops.aten

_VIEWS = frozenset(
    {
        aten.view,
        aten.transpose,
        aten.permute,
        aten.t,
        aten.unsqueeze,
        aten.squeeze,
        aten.expand,
        aten.slice,
        aten.select,
        aten.chunk,
        aten.split,
        aten.split_with_sizes,
        aten.unbind,
        aten.unflatten,
        aten.reshape,
        aten.flatten,
        aten.alias,
        aten.detach,
    }
)
_SCATTERS = {aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default}


def functionalize(graph: fx.Graph) -> None:
    """Replace `x.add_(y)` and the like, and writes into parts (`x[..., ::2] = y`), in place.

    Raises TraceError for a mutation that other views of the same memory could see.
    """
    for node in list(graph.nodes):
        if _mutates(node):
            _replace(graph, node)


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _replace(graph: fx.Graph, node: fx.Node) -> None:
    """`base[part].op_(y)` becomes `scatter(base, op(base[part], y), part)`; later readers of `base` read that."""
    chain: list[fx.Node] = []
    base = node.args[0]
    while isinstance(base, fx.Node) and base.target in _SCATTERS:
        chain.append(base)
        base = base.args[0]
    if not isinstance(base, fx.Node):
        raise _unsupported(node)
    for part in chain:
        if any(node < user for user in part.users):
            raise _unsupported(node)
    _check_unshared(base, node)
    with graph.inserting_before(node):
        result = _result(graph, node)
        for part in chain:
            arguments = (part.args[0], result, *part.args[1:])
            result = graph.call_function(_SCATTERS[part.target], arguments)  # type: ignore[index]
            result.meta = {**node.meta, "val": part.args[0].meta["val"]}  # type: ignore[union-attr]
    _redirect(base, node, result)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _result(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """What a mutation writes, as a value: the functional form of its op."""
    if node.target is aten.copy_.default:
        value = node.args[1]
        if isinstance(value, fx.Node) and value.meta["val"].shape == node.meta["val"].shape:
            return value
        functional, overload = aten.copy, "default"
    else:
        name = node.target.overloadpacket.__name__  # type: ignore[union-attr]
        functional, overload = getattr(aten, name.removesuffix("_"), None), node.target._overloadname  # type: ignore[union-attr]
    if functional is None or overload not in functional.overloads():
        raise _unsupported(node)
    result = graph.call_function(getattr(functional, overload), node.args, node.kwargs)
    result.meta = dict(node.meta)
    return result


def _redirect(before: fx.Node, mutation: fx.Node, after: fx.Node) -> None:
    """Readers of `before` that come after the mutation read `after`."""
    for user in list(before.users):
        if mutation < user:
            user.replace_input_with(before, after)


def _check_unshared(target: fx.Node, node: fx.Node) -> None:
    """The memory of `target` is its own: it is no view, and no view of it taken before the mutation is read after."""
    if target.op != "call_function" or getattr(target.target, "overloadpacket", None) in _VIEWS:
        raise _unsupported(node)
    for user in target.users:
        taken_before = user < node and getattr(user.target, "overloadpacket", None) in _VIEWS
        if taken_before and any(node < reader for reader in user.users):
            raise _unsupported(node)


def _unsupported(node: fx.Node) -> TraceError:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return TraceError(
        f"cannot be traced: {node.target} writes into a tensor that other tensors share",
        where=stack[-1][0] if stack else node.name,
        hint="write `x = x + y` for `x += y` in the model's code",
    )
