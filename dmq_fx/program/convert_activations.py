"""Observers become quantize and dequantize nodes."""

from __future__ import annotations

from typing import Any

import torch
import torchao.quantization.quant_primitives  # noqa: F401  (registers torchao.quantize_affine)
from torch import Tensor, fx
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401  (registers the operators)

from dmq_fx.numerics import IntegerGrid, QParams
from dmq_fx.program.graph_tools import cast_to, compute_dtype, finish, get_tensor_device, record, set_buffer
from dmq_fx.program.observe import slot_node
from dmq_fx.program.program import Activation, Program
from dmq_fx.program.scaling import ChannelFactors, channel_axis, channel_factors

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed
ao = torch.ops.torchao
SCALES = "dmq.activation_scale"
ZERO_POINTS = "dmq.activation_zero_point"
DERIVED = "dmq.derived"
"""Tensors of the graph that follow from others of the program (`derived_tensors`), and are not stored."""


def convert_activations(program: Program) -> None:
    """Replace every observer by quantize and dequantize nodes that use `program.qparams`.

    | range | scaled by channel | quantize, dequantize |
    | --- | --- | --- |
    | static | no | per tensor, scale a constant |
    | static | yes | per channel; per tensor, or per channel where shifts stay in the activation |
    | per timestep | no | per channel along the batch: scales [batch], picked from a table [slots, activations] |
    | per timestep | yes | `quantize_affine`, scales [batch, channels] = scales [batch] x factors; per batch as above |

    The table is gathered once a forward.
    """
    module, graph = program.graph_module, program.graph_module.graph
    device = get_tensor_device(module)
    for name, tensor in derived_tensors(program).items():
        set_buffer(module, name, tensor.to(device))
    columns = [a for a in program.activations if a.spec.per_timestep]
    tables = _gather_tables(program, columns) if columns else None
    observers = {n.meta["dmq"]["activation"]: n for n in graph.nodes if n.meta.get("dmq", {}).get("kind") == "observer"}
    for activation in program.activations:
        observer = observers[activation.index]
        factors = channel_factors(program, activation)
        if activation.spec.per_timestep:
            assert tables is not None
            replacement = _per_sample(program, observer, activation, factors, tables, columns.index(activation))
        else:
            replacement = _static(program, observer, activation, factors)
        observer.replace_all_uses_with(replacement, propagate_meta=False)
        graph.erase_node(observer)
    finish(module)


def derived_tensors(program: Program) -> dict[str, Tensor]:
    """Scales of activations that are scaled by channel, by their names in the graph.

    Per timestep: factors, [slots or 1, channels]. Static: scales and zero points, [channels] each.
    """
    found: dict[str, Tensor] = {}
    for activation in program.activations:
        factors = channel_factors(program, activation)
        if factors is None:
            continue
        if activation.spec.per_timestep:
            found[_derived(activation, "quantize_factor")] = factors.quantize
            if isinstance(factors.dequantize, Tensor):
                found[_derived(activation, "dequantize_factor")] = factors.dequantize
            continue
        scale, zero_point = (part.cpu() for part in program.qparams[activation.index])
        found[_derived(activation, "quantize_scale")] = scale * factors.quantize[0]
        found[_derived(activation, "zero_point")] = zero_point.expand(factors.quantize.shape[1]).contiguous()
        if isinstance(factors.dequantize, Tensor):
            found[_derived(activation, "dequantize_scale")] = scale * factors.dequantize[0]
    return found


def quantize_factor_name(activation: Activation) -> str:
    """Where the graph has what multiplies a scale per timestep by channel, [slots or 1, channels]."""
    return _derived(activation, "quantize_factor")


def dequantize_factor_name(activation: Activation) -> str:
    """As above, of what multiplies it where integers become values again."""
    return _derived(activation, "dequantize_factor")


def _derived(activation: Activation, what: str) -> str:
    return f"{DERIVED}.{activation.index}.{what}"


def _gather_tables(program: Program, columns: list[Activation]) -> tuple[fx.Node, fx.Node]:
    """Rows of the scale and zero-point tables for every sample, [batch, activations] each."""
    module, graph = program.graph_module, program.graph_module.graph
    device = get_tensor_device(module)
    scale = torch.stack([program.qparams[a.index].scale for a in columns], 1)
    zero_point = torch.stack([program.qparams[a.index].zero_point for a in columns], 1)
    set_buffer(module, SCALES, scale.to(device))
    set_buffer(module, ZERO_POINTS, zero_point.to(device))
    slot = slot_node(program)
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
    program: Program,
    observer: fx.Node,
    activation: Activation,
    factors: ChannelFactors | None,
    tables: tuple[fx.Node, fx.Node],
    column: int,
) -> fx.Node:
    graph = observer.graph
    bounds = _bounds(activation)
    with graph.inserting_before(observer):
        scale, zero_point = (
            _repeated(activation, _table(activation, graph, aten.select.int, (row, 1, column))) for row in tables
        )
        if factors is None:
            arguments = (scale, zero_point, 0, *bounds)
            return _quantize_pair(
                observer,
                activation,
                (qd.quantize_per_channel.default, arguments),
                (qd.dequantize_per_channel.default, arguments),
            )
        axis = channel_axis(program, activation)
        assert axis is not None
        channels = factors.quantize.shape[1]
        block = _block(observer, axis)
        zero_points = _table(
            activation,
            graph,
            aten.expand.default,
            (_table(activation, graph, aten.unsqueeze.default, (zero_point, 1)), [-1, channels]),
        )
        by_channel = _by_channel(program, activation, scale, "quantize_factor", factors.quantize)
        quantize = (ao.quantize_affine.default, (block, by_channel, zero_points, bounds[2], *bounds[:2]))
        if isinstance(factors.dequantize, Tensor):
            by_channel = _by_channel(program, activation, scale, "dequantize_factor", factors.dequantize)
            arguments = (block, by_channel, zero_points, bounds[2], *bounds[:2])
            return _quantize_pair(observer, activation, quantize, (ao.dequantize_affine.default, arguments))
        if factors.dequantize != 1.0:
            scale = _table(activation, graph, aten.mul.Tensor, (scale, factors.dequantize))
        dequantize = (qd.dequantize_per_channel.default, (scale, zero_point, 0, *bounds))
        return _quantize_pair(observer, activation, quantize, dequantize)


def _by_channel(program: Program, activation: Activation, scale: fx.Node, what: str, factor: Tensor) -> fx.Node:
    """Scales of every sample and channel, [batch, channels]."""
    graph = program.graph_module.graph
    table = graph.get_attr(_derived(activation, what))
    if factor.shape[0] > 1:
        picked = _table(activation, graph, aten.index_select.default, (table, 0, slot_node(program)))
        table = _repeated(activation, picked)
    column = _table(activation, graph, aten.unsqueeze.default, (scale, 1))
    return _table(activation, graph, aten.mul.Tensor, (column, table))


def _repeated(activation: Activation, node: fx.Node) -> fx.Node:
    """A row for each row of the value, where a model folds another axis into the batch."""
    if activation.batch_multiple == 1:
        return node
    arguments = (node, activation.batch_multiple, 0)
    return _table(activation, node.graph, aten.repeat_interleave.self_int, arguments)


def _table(activation: Activation, graph: fx.Graph, target: Any, arguments: tuple) -> fx.Node:
    return record(graph.call_function(target, arguments), kind="table", sites=activation.sites)


def _block(observer: fx.Node, axis: int) -> list[Any]:
    """`block_size` of one scale a sample and channel: 1 there, the whole dimension elsewhere."""
    producer = observer.args[0]
    assert isinstance(producer, fx.Node)
    sizes: list[Any] = []
    for dim, size in enumerate(producer.meta["val"].shape):
        if dim in (0, axis):
            sizes.append(1)
        elif isinstance(size, int):
            sizes.append(size)
        else:
            sizes.append(observer.graph.call_function(aten.sym_size.int, (producer, dim)))
    return sizes


def _static(program: Program, observer: fx.Node, activation: Activation, factors: ChannelFactors | None) -> fx.Node:
    graph, bounds = observer.graph, _bounds(activation)
    found: QParams = program.qparams[activation.index]
    scale, zero_point = float(found.scale[0]), int(found.zero_point[0])
    if factors is None:
        arguments = (scale, zero_point, *bounds)
        with graph.inserting_before(observer):
            return _quantize_pair(
                observer,
                activation,
                (qd.quantize_per_tensor.default, arguments),
                (qd.dequantize_per_tensor.default, arguments),
            )
    axis = channel_axis(program, activation)
    with graph.inserting_before(observer):
        zero_points = graph.get_attr(_derived(activation, "zero_point"))
        scales = graph.get_attr(_derived(activation, "quantize_scale"))
        quantize = (qd.quantize_per_channel.default, (scales, zero_points, axis, *bounds))
        if isinstance(factors.dequantize, Tensor):
            scales = graph.get_attr(_derived(activation, "dequantize_scale"))
            dequantize = (qd.dequantize_per_channel.default, (scales, zero_points, axis, *bounds))
        else:
            dequantize = (qd.dequantize_per_tensor.default, (scale * factors.dequantize, zero_point, *bounds))
        return _quantize_pair(observer, activation, quantize, dequantize)


def _bounds(activation: Activation) -> tuple[int, int, torch.dtype]:
    grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)
    return grid.qmin, grid.qmax, grid.dtype


def _quantize_pair(
    observer: fx.Node, activation: Activation, quantize: tuple[Any, tuple], dequantize: tuple[Any, tuple]
) -> fx.Node:
    facts = {"kind": "activation", "activation": activation.index, "sites": activation.sites}
    graph, producer = observer.graph, observer.args[0]
    assert isinstance(producer, fx.Node)
    integers = record(graph.call_function(quantize[0], (producer, *quantize[1])), **facts)
    values = record(graph.call_function(dequantize[0], (integers, *dequantize[1])), **facts)
    values.meta["val"] = producer.meta.get("val")
    return cast_to(graph, values, compute_dtype(producer))
