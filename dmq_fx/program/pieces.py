"""Parts of a traced graph as modules of their own: some nodes, the values they read, the values they give."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from dmq_fx.roles.values import shape
from dmq_fx.tracing import TracedModel

aten = torch.ops.aten


BATCH = sympy.Symbol("batch", positive=True, integer=True)


class NotClosedError(Exception):
    """Nodes that cannot stand alone; the message says why. For callers that have another way."""


@dataclass(frozen=True)
class Piece:
    """A part of a traced graph.

    module: called with the values of `inputs` and then those of `weights`, gives a tuple of the values of `outputs`.
    inputs, outputs: names of the traced graph's nodes. weights: names of parameters.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]


def extract(
    traced: TracedModel, nodes: Collection[fx.Node], outputs: Sequence[fx.Node], weights: Collection[str]
) -> Piece:
    """The piece that computes `outputs` by `nodes`; it shares its tensors with the traced graph.

    Tensors that `nodes` read become arguments: values computed elsewhere, and the parameters named in `weights`. Sizes
    computed elsewhere are read off an input that has them. Other parameters and buffers are read as they are.
    Raises NotClosedError if a value is no tensor, or a size is not that of an input.
    """
    inside = set(nodes)
    order = [node for node in traced.graph.nodes if node in inside]
    used = [*(source for node in order for source in node.all_input_nodes), *outputs]
    read = [node for node in dict.fromkeys(used) if node not in inside]
    inputs = [node for node in read if node.op != "get_attr" and not is_size(node)]
    for node in inputs:
        if not isinstance(node.meta.get("val"), Tensor):
            raise NotClosedError(f"it reads {node.name!r}, which is no tensor")
    parameters = [node for node in read if node.op == "get_attr" and str(node.target) in weights]
    graph, axis = fx.Graph(), BatchAxis(traced)
    copies: dict[fx.Node, fx.Node] = {}
    for node in (*inputs, *parameters):
        copies[node] = graph.placeholder(node.name)
    for node in read:
        if node.op == "get_attr" and node not in copies:
            copies[node] = graph.node_copy(node)
    for node in read:
        if is_size(node) and node.op != "get_attr":
            _copy_size(graph, node, inputs, copies, axis)
    for node in order:
        copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(tuple(copies[node] for node in outputs))
    module = fx.GraphModule(traced.graph_module, graph, class_name="Piece")
    return Piece(
        module,
        tuple(node.name for node in inputs),
        tuple(str(node.target) for node in parameters),
        tuple(node.name for node in outputs),
    )


class BatchAxis:
    """Which values of a traced graph follow the batch.

    Tracing gives the batch of every input a symbol of its own; here they are one.
    """

    def __init__(self, traced: TracedModel) -> None:
        batched = {entry.name for entry in traced.inputs if entry.batched}
        nodes = [node for node in traced.graph.nodes if node.op == "placeholder" and node.name in batched]
        symbols = {symbol for node in nodes for symbol in _symbolic(node.meta["val"].shape[0]).free_symbols}
        self._one: list[tuple[Any, Any]] = [(symbol, BATCH) for symbol in symbols]
        self._rows: dict[fx.Node, int | None] = {}

    def size(self, size: Any) -> sympy.Expr:
        """A size as an expression of the batch (and of height and width where they are free)."""
        return _symbolic(size).subs(self._one)

    def rows(self, node: fx.Node) -> int | None:
        """k if the first axis of a node's value is k times the batch, batch outermost; 0 if no axis follows the batch.

        None where the batch is another axis, or the value is no tensor: such a value cannot be kept by samples.
        """
        if node not in self._rows:
            self._rows[node] = self._find_rows(node)
        return self._rows[node]

    def bytes(self, node: fx.Node) -> int:
        """Bytes of a node's value for one sample, at the traced size; of all of it if it does not follow the batch."""
        rows = self.rows(node)
        sizes = shape(node)
        return prod(sizes[1:] if rows else sizes) * (rows or 1) * node.meta["val"].element_size()

    def _find_rows(self, node: fx.Node) -> int | None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        if all(isinstance(size, int) for size in value.shape):
            return 0
        sizes = [sympy.simplify(self.size(size)) for size in value.shape]
        follows = [index for index, size in enumerate(sizes) if BATCH in size.free_symbols]
        if not follows:
            return 0
        ratio = sympy.simplify(sizes[0] / BATCH)
        return int(ratio) if follows == [0] and ratio.is_Integer else None


def is_size(node: fx.Node) -> bool:
    """The node's value is a number: the size of something."""
    return isinstance(node.meta.get("val"), (torch.SymInt, int))


def _copy_size(
    graph: fx.Graph, node: fx.Node, inputs: Sequence[fx.Node], copies: dict[fx.Node, fx.Node], batch: BatchAxis
) -> None:
    """Add a node that computes the size `node` from what the piece has."""
    if node in copies:
        return
    wanted = batch.size(node.meta["val"])
    for source in inputs:
        for axis, size in enumerate(source.meta["val"].shape):
            if batch.size(size) == wanted:
                copies[node] = graph.call_function(aten.sym_size.int, (copies[source], axis))
                return
    if node.op != "call_function" or not all(is_size(source) for source in node.all_input_nodes):
        raise NotClosedError(f"it uses the size {node.name!r}, which none of its inputs has")
    for source in node.all_input_nodes:
        _copy_size(graph, source, inputs, copies, batch)
    copies[node] = graph.node_copy(node, lambda source: copies[source])


def _symbolic(size: Any) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
