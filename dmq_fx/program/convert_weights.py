"""Weights become integers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401  (registers the operators)

from dmq_fx.numerics import QuantizedWeight
from dmq_fx.program.graph_tools import cast_to, compute_dtype, finish, get_tensor_device, record, set_buffer
from dmq_fx.program.program import Program
from dmq_fx.program.scaling import placed_weight

qd = torch.ops.quantized_decomposed


def convert_weights(program: Program, weights: Mapping[str, QuantizedWeight]) -> None:
    """Replace weights by their integers and a dequantize node, and biases by those that passes set."""
    module, graph = program.graph_module, program.graph_module.graph
    program.weights = dict(weights)
    placed = placed_weights(program)
    for node in [n for n in graph.nodes if n.op == "get_attr" and n.target in weights]:
        name = str(node.target)
        _place_weight(module, name, placed[name])
        dequantized = _dequantize_weight(graph, node, name, placed[name])
        node.replace_all_uses_with(dequantized, delete_user_cb=_not_dequantize, propagate_meta=False)
    for name, tensor in (program.biases | program.norms).items():
        set_buffer(module, name, tensor)
    finish(module)
    program.states.add("quantized")


def placed_weights(program: Program) -> dict[str, QuantizedWeight]:
    """The integers that the graph holds, by weight name: `program.weights`, shifted where the input's shifts are."""
    placed = {}
    for planned in program.plan.sites:
        weight = program.weights.get(planned.site.weight or "")
        if weight is not None:
            placed[planned.site.weight or ""] = placed_weight(program, planned, weight)
    return placed


def _not_dequantize(user: fx.Node) -> bool:
    return user.meta.get("dmq", {}).get("kind") != "weight"


def _place_weight(module: fx.GraphModule, name: str, weight: QuantizedWeight) -> None:
    device = get_tensor_device(module)
    set_buffer(module, name, weight.integers.to(device))
    set_buffer(module, f"{name}_scale", weight.scale.to(device))
    set_buffer(module, f"{name}_zero_point", weight.zero_point.to(device))


def _dequantize_weight(graph: fx.Graph, node: fx.Node, name: str, weight: QuantizedWeight) -> fx.Node:
    grid = weight.grid.widest
    bounds = (grid.qmin, grid.qmax, grid.dtype)
    with graph.inserting_after(node):
        zero_point = graph.get_attr(f"{name}_zero_point")
    with graph.inserting_after(node):
        scale = graph.get_attr(f"{name}_scale")
    with graph.inserting_after(zero_point):
        if weight.scale.dim() == 0:
            result = graph.call_function(qd.dequantize_per_tensor.tensor, (node, scale, zero_point, *bounds))
        elif weight.scale.dim() == 1:
            result = graph.call_function(qd.dequantize_per_channel.default, (node, scale, zero_point, 0, *bounds))
        else:
            group = weight.integers.shape[1] // weight.scale.shape[1]
            result = graph.call_function(
                qd.dequantize_per_channel_group.default,
                (node, scale, zero_point, *bounds, group, torch.float32),
            )
    result.meta = dict(node.meta)
    record(result, kind="weight", weight=name)
    return cast_to(graph, result, compute_dtype(node))
