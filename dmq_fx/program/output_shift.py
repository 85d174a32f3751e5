"""A table of what is added to the model's output, one row a sampler step."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from dmq_fx.program.graph_tools import cast_to, compute_dtype, finish, get_tensor_device, record, set_buffer
from dmq_fx.program.observe import slot_node
from dmq_fx.program.program import Program
from dmq_fx.tracing import TracedModel

aten = torch.ops.aten
OUTPUT_SHIFT = "dmq.output_shift"


FRAMES_FIRST = ("CogVideoXTransformer3DModel", "UNetSpatioTemporalConditionModel")
"""Classes whose output is [batch, frames, channels, height, width]."""


def output_axis(traced: TracedModel) -> int:
    """Which dimension of the output has the channels: the last of a transformer's tokens, else the second."""
    tokens = _output(traced.graph).meta["val"].dim() == 3 and "Transformer" in traced.class_name
    return 2 if tokens or traced.class_name in FRAMES_FIRST else 1


def output_shift_rows(program: Program, slot: Tensor | None) -> Tensor:
    """What is added to the output of samples in these slots, [batch] (None where there is but one), shaped for it."""
    assert program.output_shift is not None
    by_slot = slot is not None and len(program.output_shift) > 1
    rows = program.output_shift[slot.cpu()] if slot is not None and by_slot else program.output_shift
    return rows.reshape(_shape(program.traced))


def insert_output_shift(program: Program) -> None:
    """Add the row of `program.output_shift` that is nearest in time to every sample's output; nothing without one."""
    if program.output_shift is None:
        return
    module, graph = program.graph_module, program.graph_module.graph
    set_buffer(module, OUTPUT_SHIFT, program.output_shift.to(get_tensor_device(module)))
    output = _output(graph)
    slot = slot_node(program) if len(program.output_shift) > 1 else None
    with graph.inserting_before(_end(graph)):
        rows = graph.get_attr(OUTPUT_SHIFT)
        if slot is not None:
            rows = graph.call_function(aten.index_select.default, (rows, 0, slot))
        shaped = graph.call_function(aten.reshape.default, (rows, _shape(program.traced)))
    shaped = cast_to(graph, shaped, compute_dtype(output))
    with graph.inserting_before(_end(graph)):
        total = graph.call_function(aten.add.Tensor, (output, shaped))
    total.meta["val"] = output.meta["val"]
    record(total, kind="output_shift")
    output.replace_all_uses_with(total, delete_user_cb=lambda user: user.op == "output", propagate_meta=False)
    finish(module)


def _shape(traced: TracedModel) -> list[int]:
    axis, dim = output_axis(traced), _output(traced.graph).meta["val"].dim()
    return [-1, *([1] * (axis - 1)), _output(traced.graph).meta["val"].shape[axis], *([1] * (dim - 1 - axis))]


def _end(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op == "output")


def _output(graph: fx.Graph) -> fx.Node:
    """The prediction: the first value that the graph gives."""
    return _end(graph).all_input_nodes[0]
