"""GPTQ: integers that keep a site's outputs over the calibration inputs, without gradients.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv:2210.17323);
the arithmetic is in `dmq_fx.numerics.gptq`. A convolution's inputs are its unfolded patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.calibration.minibatches import Minibatches, Pick
from dmq_fx.calibration.streaming import SiteInterpreter
from dmq_fx.errors import CalibrationError
from dmq_fx.numerics import QuantizedWeight
from dmq_fx.numerics.gptq import (
    Hessian,
    Window,
    gptq_weight,
    hessian_bytes,
    linear_rows,
    output_error,
    rescaled,
    unfold,
)
from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import call_arguments, working_copy
from dmq_fx.program.program import PassContext, Program
from dmq_fx.recipe.language import option
from dmq_fx.tracing import TracedModel

BATCH = 16
"""Calibration rows of one forward."""
PATCH_ELEMENTS = 2**24
"""Unfolded patches that are held at once (64 MiB)."""


@dataclass(frozen=True, kw_only=True)
class GptqOptions:
    """Options of `gptq`."""

    damping: float = option(
        "share of the mean of the Hessian's diagonal that is added to it", default=0.01, minimum=0.0, maximum=1.0
    )
    act_order: bool = option("columns with the largest inputs first", default=True)
    block: int = option("columns between two updates of all columns that follow", default=128, minimum=1)
    samples: int = option(
        "calibration inputs that are used, spread over images and steps; 0: all", default=256, minimum=0
    )
    memory_budget: int = option(
        "megabytes of Hessians at a time; less takes more runs over the calibration inputs", default=1024, minimum=1
    )
    sequential: bool = option(
        "inputs come from the network whose earlier weights (of earlier runs) are integers", default=True
    )


@dataclass(frozen=True)
class Target:
    """A weight to round and the sites that read it (more than one if they share it). position: of its first call."""

    weight: str
    planned: PlannedSite
    sites: tuple[PlannedSite, ...]
    position: int
    groups: int
    columns: int


@PASSES.register("gptq")
class Gptq:
    """Rounds weights column by column; what is left of a column's error is taken up by those after it."""

    Options = GptqOptions
    requires = frozenset({"grouped"})
    ensures = frozenset({"assigned"})
    before = frozenset({"assigned", "rounded"})

    @staticmethod
    def run(program: Program, options: GptqOptions, context: PassContext) -> PassResult:
        if context.calibration is None:
            raise CalibrationError("gptq needs calibration inputs")
        inputs = Minibatches(program.traced, context.calibration, batch=BATCH, seed=context.seed, device=context.device)
        calls = _calls(program.traced, inputs.spread(options.samples or inputs.rows))
        targets = _targets(program)
        runs = list(_runs(targets, options.memory_budget * 2**20))
        errors, finished = _resume(context)
        replaced = _other_weights(program, targets) if options.sequential else {}
        done, total = 0, len(runs) * len(calls) + len(targets)
        for run in runs:
            left = [target for target in run if target.weight not in finished]
            hessians = _empty(left, context.device)
            interpreter = _HessianInterpreter(program, left, hessians, replaced)
            for call in calls if left else ():
                interpreter.run(*inputs.take(call))
                done += 1
                context.progress("gptq", done, total)
            done += 0 if left else len(calls)
            for target in run:
                scaled = program.scaled_weight(target.planned)
                nearest = program.nearest_weight(target.planned)
                if target in left:
                    hessian = hessians.pop(target.weight).value()
                    gamma = program.input_scale(target.planned)
                    hessian = hessian if gamma is None else rescaled(hessian, gamma)
                    found, errors[target.weight] = _round(scaled, hessian, nearest, options, target.planned.name)
                    finished[target.weight] = found.integers.cpu()
                    if context.checkpoint is not None:
                        last = len(finished) == len(targets)
                        context.checkpoint.save(finished, {"errors": errors}, force=last)
                integers = finished[target.weight].to(nearest.integers)
                weight = QuantizedWeight(integers, nearest.scale, nearest.zero_point, nearest.grid)
                program.weights[target.weight] = weight
                done += 1
                context.progress("gptq", done, total)
            if options.sequential:  # only now: a resumed run must see the same inputs within a run of sites
                replaced |= {target.weight: _stand_in(program, target.planned) for target in run}
        return _result(targets, errors, len(runs), sum(len(call) for call in calls))


class _HessianInterpreter(SiteInterpreter):
    """Runs the graph up to the last of `targets`, with the weights in `replaced`, and feeds the Hessians."""

    def __init__(
        self,
        program: Program,
        targets: Sequence[Target],
        hessians: Mapping[str, Hessian],
        replaced: Mapping[str, Tensor],
    ) -> None:
        watched = {planned.site.node: planned for target in targets for planned in target.sites}
        self.program, self.hessians, self.replaced = program, hessians, dict(replaced)
        super().__init__(_up_to_last(program.traced.graph_module, watched), watched, self._collect)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return super().run(*args, **kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        found = self.replaced.get(str(target))
        return super().get_attr(target, args, kwargs) if found is None else found

    def _collect(self, planned: PlannedSite, args: tuple[Any, ...], output: Tensor) -> None:
        hessian = self.hessians[planned.site.weight or ""]
        x = args[planned.site.operands[0]]
        if planned.site.op == "linear":
            hessian.add(linear_rows(x))
            return
        window = _window(planned, self.program.nodes[planned.site.node], args)
        patches = output[0, 0].numel() * prod(window.kernel) * x.shape[1]
        for part in x.split(max(1, PATCH_ELEMENTS // patches)):
            hessian.add(unfold(part, window))


def _calls(traced: TracedModel, picks: Sequence[Pick]) -> list[list[Pick]]:
    """Picks by the forward that they go into; where the timestep does not follow the batch, each has one of them."""
    mixed = all(entry.batched for entry in traced.inputs if entry.name == traced.timestep)
    calls: dict[Any, list[list[Pick]]] = {}
    for pick in picks:
        parts = calls.setdefault(None if mixed else pick[:2], [])
        if not parts or len(parts[-1]) == BATCH:
            parts.append([])
        parts[-1].append(pick)
    return [part for parts in calls.values() for part in parts]


def _targets(program: Program) -> list[Target]:
    """Weights that the pass works on, in the order of their first use."""
    order = {node.name: index for index, node in enumerate(program.traced.graph.nodes)}
    chosen = {p.site.weight: p for p in program.plan.for_pass("gptq") if p.weight and p.site.weight}
    found = []
    for name, planned in chosen.items():
        sites = tuple(p for p in program.plan.sites if p.site.weight == name)
        groups = 1
        if planned.site.op != "linear":
            groups = _window(planned, program.nodes[planned.site.node], ()).groups
        position = min(order[p.site.node] for p in sites)
        found.append(Target(name, planned, sites, position, groups, prod(planned.site.shape[1:])))
    return sorted(found, key=lambda target: target.position)


def _runs(targets: Sequence[Target], budget: int) -> Iterator[list[Target]]:
    """Targets in turn, as many at a time as have Hessians of `budget` bytes together; at least one."""
    run: list[Target] = []
    size = 0
    for target in targets:
        needed = hessian_bytes(target.groups, target.columns)
        if run and size + needed > budget:
            yield run
            run, size = [], 0
        run.append(target)
        size += needed
    if run:
        yield run


def _empty(targets: Sequence[Target], device: Any) -> dict[str, Hessian]:
    return {target.weight: Hessian(target.groups, target.columns, device) for target in targets}


def _round(
    scaled: Tensor, hessian: Tensor, nearest: QuantizedWeight, options: GptqOptions, name: str
) -> tuple[QuantizedWeight, list[float]]:
    """Integers, and the output errors of nearest rounding and of GPTQ; nearest rounding if that is no worse."""
    found = gptq_weight(
        scaled,
        hessian,
        nearest,
        damping=options.damping,
        block=options.block,
        act_order=options.act_order,
        where=name,
    )
    errors = [float(f"{output_error(w.dequantized() - scaled, hessian):.6g}") for w in (nearest, found)]
    return found if errors[1] < errors[0] else nearest, errors


def _resume(context: PassContext) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Errors and integers of the weights that a killed run had finished."""
    saved = context.checkpoint.load() if context.checkpoint is not None else None
    if saved is None:
        return {}, {}
    tensors, facts = saved
    return dict(facts["errors"]), dict(tensors)


def _other_weights(program: Program, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Float stand-ins of the weights that another pass, or nearest rounding, makes integers."""
    own = {target.weight for target in targets}
    others = {p.site.weight: p for p in program.plan.sites if p.weight and p.site.weight and p.site.weight not in own}
    return {name or "": _stand_in(program, planned) for name, planned in others.items()}


def _stand_in(program: Program, planned: PlannedSite) -> Tensor:
    """The float weight that computes, on the inputs as they are, what a site's integers do."""
    name = planned.site.weight or ""
    weight = program.weights.get(name)
    if weight is None:
        weight = program.nearest_weight(planned)
    return program.effective_weight(planned, weight.dequantized())


def _result(targets: Sequence[Target], errors: Mapping[str, list[float]], runs: int, rows: int) -> PassResult:
    by_site = {target.planned.name: errors[target.weight] for target in targets}
    kept = sorted(name for name, (nearest, found) in by_site.items() if not found < nearest)
    modified = sorted(p.name for target in targets for p in target.sites if target.planned.name not in kept)
    shown = {name: {"nearest": pair[0], "gptq": pair[1]} for name, pair in by_site.items()}
    return PassResult(tuple(modified), {"samples": rows, "runs": runs, "kept_nearest": kept, "output_error": shown})


def _up_to_last(graph_module: fx.GraphModule, names: Mapping[str, Any]) -> fx.GraphModule:
    """The graph without what comes after the last of the named nodes."""
    found = working_copy(graph_module)
    nodes = list(found.graph.nodes)
    last = max((index for index, node in enumerate(nodes) if node.name in names), default=len(nodes) - 1)
    if last < len(nodes) - 1:
        for node in reversed(nodes[last + 1 :]):
            found.graph.erase_node(node)
        found.graph.output(nodes[last])
    return found


def _window(planned: PlannedSite, node: fx.Node, args: tuple[Any, ...]) -> Window:
    """Where a convolution's node reads; `args` are its arguments' values (not needed: none of them is computed)."""
    given = call_arguments(node, args)
    kernel = planned.site.shape[2:]
    stride, dilation = (_spread(given.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    padding = given.get("padding", 0)
    if padding == "same":
        reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        sides = tuple((size // 2, size - size // 2) for size in reach)
    else:
        sizes = _spread(0 if padding == "valid" else padding, len(kernel))
        sides = tuple((size, size) for size in sizes)
    return Window(kernel, stride, sides, dilation, int(str(given.get("groups", 1))))


def _spread(value: Any, length: int) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(value) if len(value) == length else tuple(value) * length
    return (value,) * length
