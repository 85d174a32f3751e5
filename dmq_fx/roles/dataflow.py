"""Data flow of a traced graph: what each node depends on, as bit sets over placeholders and over nodes.

A value that only depends on another tensor's *shape* (`sym_size`, `zeros_like`) does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from torch import fx

from dmq_fx.roles.operations import Operation, operation
from dmq_fx.roles.values import aten, is_tensor, packet, shape
from dmq_fx.tracing.traced import TracedModel

_SHAPE_ONLY = frozenset(
    {
        aten.zeros_like,
        aten.ones_like,
        aten.full_like,
        aten.empty_like,
        aten.new_zeros,
        aten.new_ones,
        aten.new_full,
        aten.new_empty,
        aten.rand_like,
        aten.randn_like,
    }
)


@dataclass(frozen=True)
class DataFlow:
    """Dependences between the nodes of one graph.

    operations: the ops that can be sites, by node, in execution order.
    sample, timestep: bits of the placeholders that hold the noisy sample and the timestep.
    batch: of the trace's example inputs.
    """

    graph: fx.Graph
    operations: dict[fx.Node, Operation]
    sample: int
    timestep: int
    batch: int
    _placeholders: dict[fx.Node, int]
    _ancestors: dict[fx.Node, int]
    _index: dict[fx.Node, int]

    def depends(self, node: fx.Node) -> int:
        """Bits of the placeholders that `node` depends on."""
        return self._placeholders[node]

    def on_sample(self, node: fx.Node) -> bool:
        """The node depends on the noisy sample."""
        return bool(self._placeholders[node] & self.sample)

    def is_ancestor(self, before: fx.Node, after: fx.Node) -> bool:
        """`after` is computed from `before`; a node is no ancestor of itself."""
        return bool(self._ancestors[after] >> self._index[before] & 1)

    def index(self, node: fx.Node) -> int:
        """Position in execution order."""
        return self._index[node]

    def is_vector(self, node: fx.Node) -> bool:
        """One vector a sample (or one for each of its size conditions): an embedding, not features.

        `[rows, channels]`, or more dimensions of which the others are one.
        """
        dims = shape(node)
        return len(dims) == 2 or (len(dims) > 2 and prod(dims[:-1]) == self.batch)

    def forward(self, start: fx.Node, through: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
        """Nodes reached from `start` along users, going on where `through` allows; those it refuses are given too."""
        yield from _walk(start, lambda node: [user for user in node.users if is_tensor(user)], through)

    def backward(self, start: fx.Node, through: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
        """`start` and the nodes it is computed from, going on where `through` allows; refused ones are given too."""
        yield start
        if through(start):
            yield from _walk(start, lambda node: [arg for arg in node.all_input_nodes if is_tensor(arg)], through)


def data_flow(traced: TracedModel) -> DataFlow:
    """Analyse the graph of a traced model."""
    placeholders: dict[fx.Node, int] = {}
    ancestors: dict[fx.Node, int] = {}
    index: dict[fx.Node, int] = {}
    bits = {entry.name: 1 << position for position, entry in enumerate(traced.inputs)}
    for position, node in enumerate(traced.graph.nodes):
        index[node] = position
        carries = is_tensor(node) or node.op == "output"
        sources = node.all_input_nodes if carries and packet(node) not in _SHAPE_ONLY else []
        depends, before = bits.get(node.name, 0) if node.op == "placeholder" else 0, 0
        for source in sources:
            depends |= placeholders[source]
            before |= ancestors[source] | (1 << index[source])
        placeholders[node], ancestors[node] = depends, before
    operations = {node: found for node in traced.graph.nodes if (found := operation(node)) is not None}
    operations = {
        node: found for node, found in operations.items() if placeholders[node] and _both(found, placeholders)
    }
    timestep = bits.get(traced.timestep, 0) if traced.timestep else 0
    sample, batch = bits[traced.inputs[0].name], traced.example[0].shape[0]
    return DataFlow(traced.graph, operations, sample, timestep, batch, placeholders, ancestors, index)


def _both(found: Operation, placeholders: dict[fx.Node, int]) -> bool:
    """Every operand is an activation: a matmul with a table that no input changes is no site."""
    return all(placeholders[node] for node in found.inputs)


def _walk(
    start: fx.Node, step: Callable[[fx.Node], list[fx.Node]], through: Callable[[fx.Node], bool]
) -> Iterator[fx.Node]:
    seen = {start}
    stack = [start]
    while stack:
        for node in step(stack.pop()):
            if node in seen:
                continue
            seen.add(node)
            yield node
            if through(node):
                stack.append(node)
