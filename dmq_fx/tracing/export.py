"""torch.export of a denoiser, as a plain GraphModule."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from dmq_fx.errors import InternalError


def export_graph(
    denoiser: nn.Module, inputs: dict[str, Any], *, dynamic_size: bool
) -> tuple[fx.GraphModule, list[tuple[Any, ...]]]:
    """The graph of `denoiser(**inputs)` with one placeholder per leaf, and the path of each leaf in the call.

    Batch (dimension 0 of every tensor that has the batch's size) is dynamic; with `dynamic_size`, height and
    width of four-dimensional inputs too. Guards are left out: the binder checks the inputs of a call.
    """
    shapes = dynamic_shapes(inputs, dynamic_size=dynamic_size)
    with torch.no_grad():
        program = torch.export.export(denoiser, (), inputs, dynamic_shapes=shapes, strict=False)
    exported = program.module(check_guards=False)
    if not isinstance(exported, fx.GraphModule):
        raise InternalError(f"torch.export gave a {type(exported).__name__}")
    return plain_graph_module(exported), _leaf_paths(program)


def call_arguments(denoiser: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a trace: those given, in the order of forward's parameters, with `return_dict=False`."""
    parameters = inspect.signature(type(denoiser).forward).parameters
    if "return_dict" in parameters:
        inputs = {**inputs, "return_dict": False}
    order = {name: index for index, name in enumerate(parameters)}
    return dict(sorted(inputs.items(), key=lambda item: order.get(item[0], len(order))))


def batch_size(inputs: dict[str, Any]) -> int | None:
    """Size of dimension 0 of the first tensor among the inputs, which is the noisy sample in diffusers' models."""
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, torch.Tensor) and leaf.dim() > 0:
            return leaf.shape[0]
    return None


def dynamic_shapes(inputs: dict[str, Any], *, dynamic_size: bool) -> Any:
    """torch.export's `dynamic_shapes` for these inputs."""
    batch = batch_size(inputs)

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return None
        dims = {0: Dim.AUTO} if leaf.dim() > 0 and leaf.shape[0] == batch else {}
        if dynamic_size and leaf.dim() == 4:
            dims |= {2: Dim.AUTO, 3: Dim.AUTO}
        return dims

    return pytree.tree_map(of, inputs)


def plain_graph_module(exported: fx.GraphModule) -> fx.GraphModule:
    """The same graph without export's calling convention, input hooks and guards."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(exported.graph, values)
    graph.output(output)
    graph.set_codegen(CodeGen())
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            _put(root, node.target, _get(exported, node.target))
    module = fx.GraphModule(root, graph, class_name="Traced")
    module.eval()
    return module


def _leaf_paths(program: torch.export.ExportedProgram) -> list[tuple[Any, ...]]:
    """Path of each leaf of the call, in the order of the placeholders: argument name, then keys or indices."""
    spec = program.call_spec.in_spec
    if spec is None:
        raise InternalError("torch.export gave no input spec")
    _, arguments = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    leaves = pytree.tree_leaves_with_path(arguments)
    paths = {leaf: tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path) for path, leaf in leaves}
    return [paths[index] for index in range(spec.num_leaves)]


def _get(root: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(root.get_submodule(owner), name)


def _put(root: nn.Module, target: str, value: Any) -> None:
    """Register a parameter or tensor under its dotted name; tensors that are no parameters become buffers."""
    owner, _, name = target.rpartition(".")
    module = root
    for part in owner.split(".") if owner else ():
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    elif isinstance(value, torch.Tensor):
        if name not in module._buffers:
            module.register_buffer(name, value)
    else:
        raise InternalError(f"the graph reads {target!r}, which is a {type(value).__name__}")
