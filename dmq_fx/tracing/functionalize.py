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
        if not _mutates(node):
            continue
        if node.target is aten.copy_.default:
            _replace_copy(graph, node)
        else:
            _replace_elementwise(graph, node)


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _replace_elementwise(graph: fx.Graph, node: fx.Node) -> None:
    """`x.op_(y)` becomes `op(x, y)`, and later readers of `x` read its result."""
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    functional = getattr(aten, packet.__name__.removesuffix("_"), None)
    overload = node.target._overloadname  # type: ignore[union-attr]
    target = node.args[0]
    if functional is None or overload not in functional.overloads() or not isinstance(target, fx.Node):
        raise _unsupported(node)
    _check_unshared(target, node)
    node.target = getattr(functional, overload)
    _redirect(target, node)


def _replace_copy(graph: fx.Graph, node: fx.Node) -> None:
    """`base[part].copy_(value)` becomes `base' = scatter(base, value, part)`; later readers of `base` read `base'`."""
    chain: list[fx.Node] = []
    view, value = node.args[0], node.args[1]
    while isinstance(view, fx.Node) and view.target in _SCATTERS:
        chain.append(view)
        view = view.args[0]
    if not isinstance(view, fx.Node) or not isinstance(value, fx.Node) or any(len(part.users) > 1 for part in chain):
        raise _unsupported(node)
    _check_unshared(view, node)
    with graph.inserting_before(node):
        for part in chain:
            result = graph.call_function(
                _SCATTERS[part.target],  # type: ignore[index]
                (part.args[0], value, *part.args[1:]),
            )
            result.meta = {**node.meta, "val": part.args[0].meta["val"]}  # type: ignore[union-attr]
            value = result
    node.replace_all_uses_with(value)
    graph.erase_node(node)
    for part in chain:
        graph.erase_node(part)
    _redirect(view, value)


def _redirect(before: fx.Node, after: fx.Node) -> None:
    """Readers of `before` that come after `after` read `after`."""
    for user in list(before.users):
        if after < user:
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
