"""Observers become quantize/dequantize nodes, weights become integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401  (registers the operators)

from dmq_fx.errors import InternalError
from dmq_fx.numerics import IntegerGrid, QParams, QuantizedWeight
from dmq_fx.program.graph_tools import compute_dtype, finish, record, set_buffer
from dmq_fx.program.observe import get_tensor_device
from dmq_fx.program.program import Activation, Program

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed
SCALES = "dmq.activation_scale"
ZERO_POINTS = "dmq.activation_zero_point"


def convert_activations(program: Program) -> None:
    """Replace every observer by quantize and dequantize nodes that use `program.qparams`.

    A static activation takes `quantize_per_tensor` with its scale as a constant. One with a range per timestep takes
    `quantize_per_channel` along the batch, with scales [batch] picked from one table [slots, activations] that is
    gathered once a forward.
    """
    module, graph = program.graph_module, program.graph_module.graph
    columns = [a for a in program.activations if a.spec.per_timestep]
    rows = _gather_tables(program, columns) if columns else None
    observers = {n.meta["dmq"]["activation"]: n for n in graph.nodes if n.meta.get("dmq", {}).get("kind") == "observer"}
    for activation in program.activations:
        observer = observers[activation.index]
        if activation.spec.per_timestep:
            assert rows is not None
            replacement = _per_sample(graph, observer, activation, rows, columns.index(activation))
        else:
            replacement = _static(graph, observer, activation, program.qparams[activation.index])
        observer.replace_all_uses_with(replacement, propagate_meta=False)
        graph.erase_node(observer)
    finish(module)


def convert_weights(program: Program, weights: Mapping[str, QuantizedWeight]) -> None:
    """Replace weights by their integers and a dequantize node, and biases by those that passes set."""
    module, graph = program.graph_module, program.graph_module.graph
    for node in [n for n in graph.nodes if n.op == "get_attr" and n.target in weights]:
        name = str(node.target)
        _place_weight(module, name, weights[name])
        dequantized = _dequantize_weight(graph, node, name, weights[name])
        node.replace_all_uses_with(dequantized, delete_user_cb=_not_dequantize, propagate_meta=False)
    for name, bias in program.biases.items():
        set_buffer(module, name, bias)
    program.weights = dict(weights)
    finish(module)
    program.states.add("quantized")


def _not_dequantize(user: fx.Node) -> bool:
    return user.meta.get("dmq", {}).get("kind") != "weight"


def _place_weight(module: fx.GraphModule, name: str, weight: QuantizedWeight) -> None:
    device = get_tensor_device(module)
    set_buffer(module, name, weight.integers.to(device))
    set_buffer(module, f"{name}_scale", weight.scale.to(device))
    set_buffer(module, f"{name}_zero_point", weight.zero_point.to(device))


def _dequantize_weight(graph: fx.Graph, node: fx.Node, name: str, weight: QuantizedWeight) -> fx.Node:
    grid = weight.grid
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
    return _cast(graph, result, compute_dtype(node))


def _gather_tables(program: Program, columns: list[Activation]) -> tuple[fx.Node, fx.Node]:
    """Rows of the scale and zero-point tables for every sample, [batch, activations] each."""
    module, graph = program.graph_module, program.graph_module.graph
    device = get_tensor_device(module)
    scale = torch.stack([program.qparams[a.index].scale for a in columns], 1)
    zero_point = torch.stack([program.qparams[a.index].zero_point for a in columns], 1)
    set_buffer(module, SCALES, scale.to(device))
    set_buffer(module, ZERO_POINTS, zero_point.to(device))
    slot = next((n for n in graph.nodes if n.target == aten.argmin.default and "dmq" in n.meta), None)
    if slot is None:
        raise InternalError("the graph has no slot node; observers must be inserted before they are converted")
    gathered = []
    position = slot
    for name in (SCALES, ZERO_POINTS):
        with graph.inserting_after(position):
            table = graph.get_attr(name)
        with graph.inserting_after(table):
            position = record(graph.call_function(aten.index_select.default, (table, 0, slot)), kind="table")
        gathered.append(position)
    return gathered[0], gathered[1]


def _per_sample(
    graph: fx.Graph, observer: fx.Node, activation: Activation, rows: tuple[fx.Node, fx.Node], column: int
) -> fx.Node:
    grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)
    with graph.inserting_before(observer):
        picked = [graph.call_function(aten.select.int, (row, 1, column)) for row in rows]
        if activation.batch_multiple > 1:
            picked = [
                graph.call_function(aten.repeat_interleave.self_int, (p, activation.batch_multiple)) for p in picked
            ]
        qparams = (*picked, 0, grid.qmin, grid.qmax, grid.dtype)
        for node in picked:
            record(node, kind="table", sites=activation.sites)
    return _quantize_pair(
        graph, observer, activation, qd.quantize_per_channel.default, qd.dequantize_per_channel.default, qparams
    )


def _static(graph: fx.Graph, observer: fx.Node, activation: Activation, found: QParams) -> fx.Node:
    grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)
    qparams = (float(found.scale[0]), int(found.zero_point[0]), grid.qmin, grid.qmax, grid.dtype)
    return _quantize_pair(
        graph, observer, activation, qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default, qparams
    )


def _quantize_pair(
    graph: fx.Graph, observer: fx.Node, activation: Activation, quantize: Any, dequantize: Any, qparams: tuple
) -> fx.Node:
    facts = {"kind": "activation", "activation": activation.index, "sites": activation.sites}
    producer = observer.args[0]
    assert isinstance(producer, fx.Node)
    with graph.inserting_before(observer):
        integers = record(graph.call_function(quantize, (producer, *qparams)), **facts)
        values = record(graph.call_function(dequantize, (integers, *qparams)), **facts)
    values.meta["val"] = producer.meta.get("val")
    return _cast(graph, values, compute_dtype(producer))


def _cast(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """Dequantized values are float32; a model of another type gets them in its own."""
    if dtype == torch.float32:
        return node
    with graph.inserting_after(node):
        cast = graph.call_function(aten.to.dtype, (node, dtype))
    cast.meta = dict(node.meta)
    return cast
