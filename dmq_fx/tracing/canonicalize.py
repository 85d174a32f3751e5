"""Bringing a traced graph into one form: small passes that remove nodes which compute nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from dmq_fx.tracing.functionalize import functionalize

aten = torch.ops.aten

_ASSERTS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_async.msg,
        aten._assert_scalar.default,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)
_DROPOUTS = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})
_ALIASES = frozenset(
    {aten.alias.default, aten.detach.default, aten.detach_.default, aten.lift_fresh_copy.default, aten.lift.default}
)
_CASTS = frozenset(
    {aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten._to_copy.default, aten.type_as.default}
)
_SCALES = frozenset({aten.mul.Tensor, aten.div.Tensor})


def canonicalize(graph_module: fx.GraphModule) -> None:
    """Run the passes on a graph in place; its values stay the same."""
    for step in PASSES:
        step(graph_module.graph)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    _delete_unused_tensors(graph_module)
    graph_module.graph.lint()
    graph_module.recompile()


def drop_asserts(graph: fx.Graph) -> None:
    """Remove assertions on metadata and ranges: the binder checks what a call passes in."""
    for node in list(graph.nodes):
        guard = node.op == "call_module" and str(node.target).startswith("_guards")
        if not node.users and (guard or node.target in _ASSERTS):
            graph.erase_node(node)


def drop_dropout(graph: fx.Graph) -> None:
    """Remove dropout in evaluation."""
    for node in list(graph.nodes):
        if node.target in _DROPOUTS and (node.args[1] == 0 or node.args[2] is False):
            _bypass(node)


def drop_aliases(graph: fx.Graph) -> None:
    """Remove nodes whose result is their input, as autograd or export sees it."""
    for node in list(graph.nodes):
        if node.target in _ALIASES:
            _bypass(node)


def drop_casts(graph: fx.Graph) -> None:
    """Remove casts to the dtype and device that a tensor has already."""
    for node in list(graph.nodes):
        if node.target not in _CASTS or not isinstance(node.args[0], fx.Node):
            continue
        before, after = node.args[0].meta.get("val"), node.meta.get("val")
        if before is None or after is None:
            continue
        memory_format = node.kwargs.get("memory_format") not in (None, torch.preserve_format, torch.contiguous_format)
        if before.dtype == after.dtype and before.device == after.device and not memory_format:
            _bypass(node)


def drop_slices(graph: fx.Graph) -> None:
    """Remove slices that keep everything."""
    for node in list(graph.nodes):
        if node.target is not aten.slice.Tensor:
            continue
        start = node.args[2] if len(node.args) > 2 else None
        end = node.args[3] if len(node.args) > 3 else None
        step = node.args[4] if len(node.args) > 4 else 1
        whole = end is None or (isinstance(end, int) and end >= 2**63 - 1)
        if start in (None, 0) and whole and step == 1:
            _bypass(node)


def drop_unit_scales(graph: fx.Graph) -> None:
    """Remove multiplications and divisions by the number one."""
    for node in list(graph.nodes):
        if node.target not in _SCALES or not isinstance(node.args[0], fx.Node) or len(node.args) < 2:
            continue
        factor = node.args[1]
        before, after = node.args[0].meta.get("val"), node.meta.get("val")
        if isinstance(factor, (int, float)) and factor == 1 and before is not None and before.dtype == after.dtype:
            _bypass(node)


PASSES: tuple[Callable[[fx.Graph], None], ...] = (
    drop_asserts,
    drop_dropout,
    drop_aliases,
    drop_casts,
    drop_slices,
    functionalize,
    drop_unit_scales,
)
"""In this order; each takes a graph and changes it in place."""


def _bypass(node: fx.Node) -> None:
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _delete_unused_tensors(graph_module: fx.GraphModule) -> None:
    used = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in graph_module.named_parameters()] + [
        name for name, _ in graph_module.named_buffers()
    ]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(graph_module.get_submodule(owner), attribute)
