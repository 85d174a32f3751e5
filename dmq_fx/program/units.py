"""Reconstruction units: the parts of the graph whose weights are rounded together, in the order they are executed.

BRECQ (Li et al., arXiv:2102.05426) reconstructs the output of one block at a time. A block is found from the modules
that tracing recorded, and is extracted as a graph of its own; what cannot be extracted is reconstructed by layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from dmq_fx.planning import PlannedSite
from dmq_fx.program.pieces import BatchAxis, NotClosedError, extract, is_size
from dmq_fx.program.program import Program

BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
"""Classes of the modules that are reconstructed as one."""


@dataclass(frozen=True)
class Unit:
    """A part of the graph that is reconstructed at once.

    sites: whose weights are rounded. module: called with the values of `inputs` and then of `weights`, gives a tuple of
    one value, that of `output`. inputs, output: names of the traced graph's nodes. weights: every quantized weight that
    it reads, by name; beside those of `sites` there may be some that keep their rounding.
    note: why the sites of a block are units of their own; empty where they are meant to be.
    """

    name: str
    sites: tuple[PlannedSite, ...]
    module: fx.GraphModule
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    output: str
    note: str = ""


def find_units(program: Program, sites: Sequence[PlannedSite], granularity: str) -> tuple[Unit, ...]:
    """The units of `sites` in execution order, for the granularity `layer` or `block`.

    A unit comes after all units that its inputs depend on. A site is in no unit if its values cannot be kept by samples
    (the batch is not their first axis). With `block`, the sites of a block that has more than one result, or that
    cannot be cut out of the graph, are units of their own and say why in `note`.
    """
    blocks: dict[tuple[str, str], list[PlannedSite]] = {}
    units: list[Unit] = []
    for planned in sites:
        block = _block_of(program.nodes[planned.site.node]) if granularity == "block" else None
        if block is None:
            units += _layers(program, [planned], "")
        else:
            blocks.setdefault(block, []).append(planned)
    for block, members in blocks.items():
        try:
            units.append(_block(program, block, members))
        except NotClosedError as reason:
            units += _layers(program, members, f"block {block[1]!r} is not one unit: {reason}")
    position = {node.name: index for index, node in enumerate(program.traced.graph.nodes)}
    return tuple(sorted(units, key=lambda unit: position[unit.output]))


def _block_of(node: fx.Node) -> tuple[str, str] | None:
    """The call of a block's module that a node belongs to, and the module's name."""
    for call, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
        if _class_name(kind) in BLOCKS:
            return str(call), str(path)
    return None


def _block(program: Program, block: tuple[str, str], members: list[PlannedSite]) -> Unit:
    traced = program.traced
    nodes = [node for node in traced.graph.nodes if node.op == "call_function" and not is_size(node)]
    core = {node for node in nodes if _block_of(node) == block}
    inside = core | _between(nodes, core)
    for node in inside - core:
        if node.meta.get("nn_module_stack"):  # nodes without one were put there by a rewrite
            raise NotClosedError(f"{node.name!r}, which is computed outside of it, lies between")
    results = [node for node in nodes if node in inside and any(user not in inside for user in node.users)]
    if len(results) != 1:
        raise NotClosedError(f"{len(results)} of its values are used outside of it")
    return _unit(program, block[1], members, inside, results[0], "")


def _between(nodes: Sequence[fx.Node], core: set[fx.Node]) -> set[fx.Node]:
    """Nodes that depend on one of `core` and that another one of it depends on."""
    after = set(core)
    for node in nodes:
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    before = set(core)
    for node in reversed(nodes):
        if any(user in before for user in node.users):
            before.add(node)
    return (after & before) - core


def _layers(program: Program, members: Sequence[PlannedSite], note: str) -> Iterator[Unit]:
    for planned in members:
        node = program.nodes[planned.site.node]
        weight = next((n for n in program.traced.graph.nodes if n.target == planned.site.weight), None)
        chain = set() if weight is None else _between(list(program.traced.graph.nodes), {weight, node}) | {node}
        try:
            yield _unit(program, planned.name, [planned], chain, node, note)
        except NotClosedError:
            continue


def _unit(
    program: Program, name: str, members: Sequence[PlannedSite], inside: set[fx.Node], result: fx.Node, note: str
) -> Unit:
    traced = program.traced
    quantized = {p.site.weight for p in program.plan.sites if p.weight and p.site.weight}
    piece = extract(traced, inside, [result], {str(weight) for weight in quantized})
    axis = BatchAxis(traced)
    for value in (*piece.inputs, *piece.outputs):
        if axis.rows(program.nodes[value]) is None:
            raise NotClosedError(f"the batch is not the first axis of {value!r}")
    return Unit(name, tuple(members), piece.module, piece.inputs, piece.weights, piece.outputs[0], note)


def _class_name(kind: object) -> str:
    """Of a class, or of its dotted path."""
    return kind.rsplit(".", 1)[-1] if isinstance(kind, str) else getattr(kind, "__name__", "")
