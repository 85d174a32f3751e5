"""The student: the program's graph with learned weights and ranges, and the features that it is compared by."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, fx, nn

from dmq_fx.distillation.feature import add_feature, split_feature
from dmq_fx.distillation.lora import LoraWeight
from dmq_fx.distillation.options import DistillationOptions
from dmq_fx.distillation.segments import in_segments
from dmq_fx.distillation.tables import ActivationQuantizer, RangeTable
from dmq_fx.numerics import IntegerGrid
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import (
    cast_to,
    compute_dtype,
    finish,
    get_tensor,
    last_placeholder,
    set_buffer,
    working_copy,
)
from dmq_fx.program.observe import OBSERVERS
from dmq_fx.program.program import Activation, Program, along_inputs

WEIGHTS = "dmq.learned_weights"
TABLES = "dmq.learned_ranges"


class Student:
    """A differentiable copy of what the program will compute; the program itself is changed by `export` only.

    Requires "calibrated". sites: whose weights and ranges are learned; all others are rounded as the program has them
    (a weight that several sites share is that of all of them, or of none).
    feature: also give the features (`find_feature`). Slots are computed in the graph from the timestep: a forward
    that is taken again gives the same.
    """

    def __init__(
        self,
        program: Program,
        sites: Collection[PlannedSite],
        options: DistillationOptions,
        seed: int,
        *,
        feature: bool,
    ) -> None:
        self._program = program
        names = {planned.name for planned in sites}
        self.module = working_copy(program.graph_module)
        self.weights = self._place_weights(names, options, seed)
        self.tables, self._columns = self._place_ranges(names, rounded=options.zero_point != "float")
        self._feature = feature
        if feature:
            add_feature(self.module, program, options.feature)
        finish(self.module)
        if options.gradient_checkpointing:
            self.module = in_segments(self.module, {planned.site.node for planned in program.plan.sites})

    def __call__(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """The prediction, and the features if they are wanted."""
        return split_feature(self.module(*arguments), self._feature)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that can be learned, by name."""
        for index, (name, weight) in enumerate(self.weights.items()):
            yield f"a.{index}.{name}", weight.a
            yield f"b.{index}.{name}", weight.b
            yield f"scale.{index}.{name}", weight.scale
            if weight.zero_point.requires_grad:
                yield f"zero_point.{index}.{name}", weight.zero_point
        for index, table in enumerate(self.tables):
            yield f"ranges.{index}.scale", table.scale
            yield f"ranges.{index}.zero_point", table.zero_point

    def weight_zero_points(self) -> list[nn.Parameter]:
        """Zero points of weights, if they are learned."""
        return [weight.zero_point for weight in self.weights.values() if weight.zero_point.requires_grad]

    def clamp_(self) -> None:
        """Take what an optimizer step has moved out of bounds back."""
        for part in (*self.weights.values(), *self.tables):
            part.clamp_()

    def round_zero_points(self) -> None:
        """Put learned zero points on integers, as `export` will write them."""
        for part in (*self.weights.values(), *self.tables):
            part.round_()

    def export(self) -> None:
        """Write integers and ranges into the program."""
        for name, weight in self.weights.items():
            self._program.weights[name] = weight.integers()
        for index, (table, column) in self._columns.items():
            self._program.qparams[index] = table.column(column)

    def _place_weights(self, names: set[str], options: DistillationOptions, seed: int) -> dict[str, LoraWeight]:
        program, graph = self._program, self.module.graph
        learned: dict[str, LoraWeight] = {}
        sites = {p.site.weight: p for p in program.plan.sites if p.weight and p.site.weight}
        for name, planned in sites.items():
            assert name is not None
            start = program.nearest_weight(planned)
            if planned.name not in names:  # as the program has it, or will have it
                original = get_tensor(program.traced.graph_module, name)
                set_buffer(self.module, name, program.weights.get(name, start).dequantized().to(original))
                continue
            gamma = program.input_scale(planned)
            base = get_tensor(program.traced.graph_module, name).detach().float()
            gamma = None if gamma is None else along_inputs(gamma, base)
            if options.base == "int":
                base = start.dequantized() if gamma is None else start.dequantized() / gamma
            weight = LoraWeight(
                base,
                start,
                gamma=gamma,
                rank=options.rank,
                per_tap=options.kernel == "per_tap",
                generator=_generator(seed, name),
                learn_zero_point=options.weight_zero_point == "learned",
            )
            place = f"{WEIGHTS}.{len(learned)}"
            self.module.add_submodule(place, weight)
            for node in [n for n in graph.nodes if n.op == "get_attr" and n.target == name]:
                with graph.inserting_after(node):
                    values = graph.call_module(place)
                values.meta = dict(node.meta)
                node.replace_all_uses_with(_cast(graph, values, node))
            learned[name] = weight
        for name, bias in program.biases.items():
            set_buffer(self.module, name, bias)
        return learned

    def _place_ranges(
        self, names: set[str], *, rounded: bool
    ) -> tuple[list[RangeTable], dict[int, tuple[RangeTable, int]]]:
        program = self._program
        learned = [a for a in program.activations if names.issuperset(a.sites)]
        tables, columns = [], {}
        for timed in (True, False):
            of_kind = [a for a in learned if a.spec.per_timestep is timed]
            if of_kind:
                found, grids = [program.qparams[a.index] for a in of_kind], [_grid(a) for a in of_kind]
                table = RangeTable(found, grids, rounded=rounded)
                tables.append(table)
                columns |= {a.index: (table, column) for column, a in enumerate(of_kind)}
        for activation in program.activations:
            table, column = columns.get(activation.index, (None, 0))
            fixed = None if table is not None else program.qparams[activation.index]
            quantizer = ActivationQuantizer(program, activation, column=column, fixed=fixed)
            name = f"{OBSERVERS}.{activation.index}"
            self.module.add_submodule(name, quantizer)
            if table is not None:
                self._read_ranges(next(node for node in self.module.graph.nodes if node.target == name), tables, table)
        return tables, columns

    def _read_ranges(self, node: fx.Node, tables: list[RangeTable], table: RangeTable) -> None:
        """Give a quantizer what its table has for the samples' slots; that node is shared by all of the table."""
        graph, name = node.graph, f"{TABLES}.{tables.index(table)}"
        known = next((other for other in graph.nodes if other.target == name), None)
        if known is None:
            self.module.add_submodule(name, table)
            slot = node.args[1]
            with graph.inserting_after(slot if isinstance(slot, fx.Node) else last_placeholder(graph)):
                known = graph.call_module(name, (slot,))
        node.args = (*node.args[:2], known)


class Teacher:
    """The full-precision graph, and its features if they are wanted; feature: of which kind (`find_feature`)."""

    def __init__(self, program: Program, *, feature: str | None) -> None:
        self.module = working_copy(program.traced.graph_module)
        self._feature = feature is not None
        if feature is not None:
            add_feature(self.module, program, feature)
        finish(self.module)

    def __call__(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """The prediction and the features, without gradients."""
        with torch.no_grad():
            return split_feature(self.module(*arguments), self._feature)


def _grid(activation: Activation) -> IntegerGrid:
    return IntegerGrid(activation.spec.bits, activation.spec.symmetric)


def _cast(graph: fx.Graph, values: fx.Node, original: fx.Node) -> fx.Node:
    return cast_to(graph, values, compute_dtype(original))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"lora {seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
