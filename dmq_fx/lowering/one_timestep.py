"""Rows of the tables of per-timestep ranges, for a graph whose samples all have one timestep."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dmq_fx.program.convert_activations import SCALES, ZERO_POINTS
from dmq_fx.program.graph_tools import record
from dmq_fx.program.observe import slot_node
from dmq_fx.program.program import Activation, Program

aten = torch.ops.aten


class Rows:
    """Scale and zero point of each activation with a range per timestep, as scalars: those of the first sample.

    A lowered graph is called with samples of one timestep (`lowering.module`), so that one scalar serves a call.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._columns = [a.index for a in program.activations if a.spec.per_timestep]
        self._slot: fx.Node | None = None
        self._zero: fx.Node | None = None
        self._tables: dict[str, fx.Node] = {}

    @property
    def slot(self) -> fx.Node:
        """Slot of the first sample, [1]."""
        if self._slot is None:
            self._slot = self._after(slot_node(self._program), aten.slice.Tensor, 0, 0, 1)
        return self._slot

    def scale(self, activation: Activation) -> fx.Node:
        """float32, no dimensions."""
        return self._entry(SCALES, activation)

    def zero_point(self, activation: Activation) -> fx.Node:
        """int64, no dimensions."""
        return self._entry(ZERO_POINTS, activation)

    @property
    def zero(self) -> fx.Node:
        """0, int64, no dimensions: for operators that take a zero point beside a scale that is not constant either."""
        if self._zero is None:
            self._zero = self._after(self._after(self.slot, aten.select.int, 0, 0), aten.mul.Tensor, 0)
        return self._zero

    def of(self, name: str) -> fx.Node:
        """Row [1, ...] of the table with this name that belongs to the slot."""
        if name not in self._tables:
            slot = self.slot
            with slot.graph.inserting_before(slot):
                table = slot.graph.get_attr(name)
            self._tables[name] = self._after(slot, aten.index_select.default, 0, slot, first=table)
        return self._tables[name]

    def _entry(self, name: str, activation: Activation) -> fx.Node:
        row = self._after(self.of(name), aten.select.int, 0, 0)
        return self._after(row, aten.select.int, 0, self._columns.index(activation.index))

    @staticmethod
    def _after(node: fx.Node, target: Any, *arguments: Any, first: fx.Node | None = None) -> fx.Node:
        with node.graph.inserting_after(node):
            return record(node.graph.call_function(target, (first or node, *arguments)), kind="table")
