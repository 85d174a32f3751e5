"""Small helpers for rewriting an exported graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten


def working_copy(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose graph and module tree can be rewritten; it shares the tensors with the original."""
    graph = copy.deepcopy(graph_module.graph)
    return fx.GraphModule(graph_module, graph, class_name=graph_module.__class__.__name__)


def get_tensor(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer at the dotted `name`."""
    owner, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(owner), leaf)
    assert isinstance(value, Tensor), name
    return value


def get_tensor_device(module: fx.GraphModule) -> torch.device:
    """Where the graph's tensors are."""
    name = next((str(node.target) for node in module.graph.nodes if node.op == "get_attr"), None)
    return get_tensor(module, name).device if name else torch.device("cpu")


def nodes_by_name(graph: fx.Graph) -> dict[str, fx.Node]:
    """The graph's nodes by their names."""
    return {node.name: node for node in graph.nodes}


def call_arguments(node: fx.Node, values: Sequence[Any] = ()) -> dict[str, Any]:
    """Arguments of a call by the names of its operator's schema: the node's own, or `values` in their place."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return dict(zip(names, values or node.args, strict=False)) | dict(node.kwargs)


def set_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    """Put `value` at the dotted `name` as a buffer, replacing a parameter or buffer that is there."""
    *path, leaf = name.split(".")
    owner = module
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        child = owner._modules[part]
        assert child is not None
        owner = child
    owner._parameters.pop(leaf, None)
    owner._buffers.pop(leaf, None)
    owner.register_buffer(leaf, value)


def tensor_names(graph_module: fx.GraphModule) -> list[str]:
    """Dotted names of the tensors that the graph reads, in order of first use."""
    return list(dict.fromkeys(str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"))


def drop_unread_tensors(graph_module: fx.GraphModule) -> None:
    """Remove parameters and buffers that no node reads."""
    read = set(tensor_names(graph_module))
    for owner_name, owner in graph_module.named_modules():
        for kind in (owner._parameters, owner._buffers):
            for leaf in [leaf for leaf in kind if (f"{owner_name}.{leaf}" if owner_name else leaf) not in read]:
                del kind[leaf]


def drop_tensor(module: nn.Module, name: str) -> None:
    """Remove the parameter or buffer at the dotted `name`."""
    owner, _, leaf = name.rpartition(".")
    delattr(module.get_submodule(owner), leaf)


def drop_tensors(module: nn.Module) -> None:
    """Remove all parameters and buffers: a graph refers to itself, and would hold them until garbage is collected."""
    for owner in module.modules():
        owner._parameters.clear()
        owner._buffers.clear()


def last_placeholder(graph: fx.Graph) -> fx.Node:
    """The node after which every input is known."""
    return [node for node in graph.nodes if node.op == "placeholder"][-1]


def record(node: fx.Node, **facts: Any) -> fx.Node:
    """Write where a node comes from into its `meta["dmq"]`."""
    node.meta["dmq"] = {**node.meta.get("dmq", {}), **facts}
    return node


def let_views_copy(graph_module: fx.GraphModule) -> None:
    """Views become reshapes, in place: the trace has taken memory for granted that a rewrite lays out otherwise."""
    for node in graph_module.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default


def finish(graph_module: fx.GraphModule) -> None:
    """Check the graph, drop dead nodes and what they read, and generate its code again."""
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def compute_dtype(node: fx.Node) -> torch.dtype:
    """Element type of a node's value; float32 if it is not recorded."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else torch.float32


def cast_to(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """Dequantized values are float32; a model of another type gets them in its own."""
    if dtype == torch.float32:
        return node
    with graph.inserting_after(node):
        cast = graph.call_function(aten.to.dtype, (node, dtype))
    cast.meta = dict(node.meta)
    return cast
