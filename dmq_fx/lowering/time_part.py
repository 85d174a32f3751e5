"""What a graph computes from the timestep alone, as a graph of its own.

A sampler visits a few dozen timesteps, over and over. The embedding of the timestep, its projection in every block, and
the rows of the tables of ranges are the same whenever it comes back: they are computed once a timestep, for one
sample, and handed to the rest of the graph as two flat tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dmq_fx.lowering.int8_sites import SHIFTED
from dmq_fx.program.graph_tools import drop_unread_tensors, finish, last_placeholder, record
from dmq_fx.tracing import TracedModel

aten = torch.ops.aten
FLOATS, INTEGERS = "dmq_floats", "dmq_integers"
"""Inputs that the rest of the graph gets in addition: float32 and int64, one dimension each."""


HANDED = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
"""Types of values that float32 or int64 hold exactly, and that are handed over in these."""


@dataclass(frozen=True)
class TimePart:
    """Two graphs in place of one, for samples that all have one timestep.

    time: from the timestep [1] to (floats, integers). body: the graph's inputs, then floats and integers.
    Both None where nothing depends on the timestep alone; body then is the whole graph.
    """

    time: fx.GraphModule | None
    body: fx.GraphModule


@dataclass(frozen=True)
class Value:
    """A value of the time part that the body reads. shape: for one sample; batched: dimension 0 is the batch."""

    node: fx.Node
    shape: tuple[int, ...]
    batched: bool
    integer: bool
    dtype: torch.dtype


def split_time_part(graph_module: fx.GraphModule, traced: TracedModel) -> TimePart:
    """Split a graph whose samples all have one timestep; `graph_module` is not changed, and shares its tensors."""
    entry = next((entry for entry in traced.inputs if entry.name == traced.timestep), None)
    if entry is None or len(entry.dims) != 1:
        return TimePart(None, graph_module)
    timestep = next(node for node in graph_module.graph.nodes if node.name == entry.name)
    kept = {n for n in graph_module.graph.nodes if n.meta.get("dmq", {}).get("kind") == SHIFTED}  # stays in the body
    while True:
        time_nodes = _depending_on(graph_module.graph, timestep, kept)
        frontier = [n for n in time_nodes if n is not timestep and any(user not in time_nodes for user in n.users)]
        if not frontier:
            return TimePart(None, graph_module)
        values, strange = _measure(graph_module, timestep, frontier, entry.dtype)
        if not strange:
            break
        kept |= strange
    time = _time_graph(graph_module, timestep, [value.node for value in values], _flat_output(values))
    return TimePart(time, _body(graph_module, values, traced))


def reads_timestep(body: fx.GraphModule, traced: TracedModel) -> bool:
    """Whether a graph, split or not, computes with the timestep itself; not if it asks for its size alone."""
    node = next((n for n in body.graph.nodes if n.op == "placeholder" and n.target == traced.timestep), None)
    return node is not None and any(user.target is not aten.sym_size.int for user in node.users)


def _depending_on(graph: fx.Graph, timestep: fx.Node, kept: set[fx.Node]) -> dict[fx.Node, None]:
    """Nodes that follow from the timestep, constants and the number of samples, in order."""
    found = {timestep: None}
    neutral: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or _is_batch_size(node):
            neutral.add(node)
        elif node.op == "call_function" and node not in kept and node.target is not aten.sym_size.int:
            sources = node.all_input_nodes
            if all(source in neutral for source in sources):
                neutral.add(node)
            elif all(source in neutral or source in found for source in sources):
                found[node] = None
    return found


def _is_batch_size(node: fx.Node) -> bool:
    if node.target is not aten.sym_size.int or node.args[1] != 0:
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and source.op == "placeholder"


def _measure(
    module: fx.GraphModule, timestep: fx.Node, frontier: list[fx.Node], dtype: torch.dtype
) -> tuple[list[Value], set[fx.Node]]:
    """Shapes of what the body reads, by running it for one and for three samples; and what it cannot be handed."""
    graph = _time_graph(module, timestep, frontier, lambda graph, nodes: graph.output(tuple(nodes)))
    with torch.no_grad():
        one, three = (graph(torch.ones(count, dtype=dtype)) for count in (1, 3))
    values, strange = [], set()
    for node, single, several in zip(frontier, one, three, strict=True):
        batched = single.shape != several.shape
        known = several.shape == (3, *single.shape[1:]) and single.shape[:1] == (1,) if batched else True
        if known and single.dtype in HANDED and _same_rows(single, several):
            integer = not single.dtype.is_floating_point
            values.append(Value(node, tuple(single.shape), batched, integer, single.dtype))
        else:
            strange.add(node)
    return values, strange


def _same_rows(single: torch.Tensor, several: torch.Tensor) -> bool:
    """Whether three samples have what one has, but for how products of another size are rounded.

    A rounding may move an integer in front of a kernel: floats are compared as the whole that they are.
    """
    expected = single.expand_as(several)
    if not single.dtype.is_floating_point or torch.equal(several, expected):
        return torch.equal(several, expected)
    return float((several - expected).double().norm()) < 0.1 * float(expected.double().norm())


def _time_graph(
    module: fx.GraphModule,
    timestep: fx.Node,
    wanted: list[fx.Node],
    close: Callable[[fx.Graph, list[fx.Node]], object],
) -> fx.GraphModule:
    """A graph from the timestep to `wanted`; `close` writes its output."""
    graph, copies = fx.Graph(), {}
    copies[timestep] = graph.placeholder(timestep.name)
    needed = _ancestors(wanted, timestep)
    for node in module.graph.nodes:
        if node not in needed:
            continue
        if _is_batch_size(node):
            copies[node] = graph.call_function(aten.sym_size.int, (copies[timestep], 0))
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    close(graph, [copies[node] for node in wanted])
    result = fx.GraphModule(module, graph, class_name="TimePart")
    graph.lint()
    return result


def _ancestors(wanted: list[fx.Node], timestep: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node in found or node is timestep:
            continue
        found.add(node)
        if not _is_batch_size(node):
            waiting += node.all_input_nodes
    return found


def _flat_output(values: list[Value]) -> Callable[[fx.Graph, list[fx.Node]], object]:
    def close(graph: fx.Graph, nodes: list[fx.Node]) -> object:
        flat = []
        for integer, dtype in ((False, torch.float32), (True, torch.int64)):
            parts = []
            for node, value in zip(nodes, values, strict=True):
                if value.integer == integer:
                    part = graph.call_function(aten.reshape.default, (node, [-1]))
                    cast = value.dtype != dtype
                    parts.append(graph.call_function(aten.to.dtype, (part, dtype)) if cast else part)
            empty = graph.call_function(aten.empty.memory_format, ([0],), {"dtype": dtype})
            flat.append(graph.call_function(aten.cat.default, ([*parts, empty],)))
        return graph.output(tuple(flat))

    return close


def _body(module: fx.GraphModule, values: list[Value], traced: TracedModel) -> fx.GraphModule:
    """A copy of the graph that takes the time part's values as inputs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, copies))
    floats, integers = _new_inputs(graph)
    sample = copies[next(n for n in module.graph.nodes if n.name == traced.inputs[0].name)]
    offsets = {False: 0, True: 0}
    place = integers
    batch: fx.Node | None = None
    for value in values:
        size, flat = math.prod(value.shape), integers if value.integer else floats
        start = offsets[value.integer]
        offsets[value.integer] += size
        if not value.shape:
            steps: list[tuple[Any, ...]] = [(aten.select.int, 0, start)]
        else:
            steps = [(aten.slice.Tensor, 0, start, start + size), (aten.reshape.default, list(value.shape))]
        if value.batched:
            if batch is None:
                with graph.inserting_after(place):
                    batch = place = graph.call_function(aten.sym_size.int, (sample, 0))
            steps.append((aten.expand.default, [batch, *value.shape[1:]]))
        if value.dtype not in (torch.float32, torch.int64):
            steps.append((aten.to.dtype, value.dtype))
        node = flat
        for target, *arguments in steps:
            with graph.inserting_after(place):
                node = place = record(graph.call_function(target, (node, *arguments)), kind="time")
        old = copies[value.node]
        node.meta |= {key: fact for key, fact in old.meta.items() if key == "val"}
        old.replace_all_uses_with(node, propagate_meta=False)
    result = fx.GraphModule(module, graph, class_name="Body")
    finish(result)
    drop_unread_tensors(result)
    return result


def _new_inputs(graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    with graph.inserting_after(last_placeholder(graph)):
        floats = graph.placeholder(FLOATS)
    with graph.inserting_after(floats):
        return floats, graph.placeholder(INTEGERS)
