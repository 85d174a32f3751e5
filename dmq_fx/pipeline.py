"""The order of things: a recipe's passes, and the core steps that bring the program where each pass needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dmq_fx.calibration.ranges import calibrate
from dmq_fx.checkpoint import Checkpoint
from dmq_fx.errors import InternalError, RecipeError
from dmq_fx.pass_api import PASSES, Order, order_of
from dmq_fx.planning import Plan
from dmq_fx.program import (
    PassContext,
    Program,
    convert_activations,
    convert_weights,
    fold_norms,
    group_activations,
    insert_observers,
    insert_output_shift,
)
from dmq_fx.recipe.language import PassSpec

Step = Callable[[Program, PassContext], None]


def run_passes(
    program: Program, passes: Sequence[PassSpec], context: PassContext, checkpoint: Checkpoint | None = None
) -> list[dict[str, Any]]:
    """Run `passes` in order, core steps in between as they are needed, and end with the quantized graph.

    checkpoint: each pass gets a section of it. Returns what each pass reported.
    """
    reports = []
    for place, spec in enumerate(passes):
        entry = PASSES.get(spec.name, where=spec.where)
        order = order_of(entry, spec.options)
        for state in STEPS:
            if state in order.requires and state not in program.states:
                advance(program, state, context)
        missing = order.requires - program.states
        if missing:
            raise InternalError(f"pass {spec.name!r} requires {sorted(missing)}, which nothing before it gives")
        section = checkpoint.section(f"{place:02d}-{spec.name}") if checkpoint else None
        result = entry.run(program, spec.options, replace(context, checkpoint=section))
        program.graph_module.graph.lint()
        program.states |= order.ensures
        reports.append({**result.report, "pass": spec.name, "sites": len(result.modified)})
    advance(program, "quantized", context)
    return reports


def check_order(passes: Sequence[PassSpec]) -> None:
    """Raise RecipeError for a pass that comes after a step which it must precede."""
    reached: dict[str, str] = {}
    orders: dict[str, Order] = {}
    for spec in passes:
        own = order_of(PASSES.get(spec.name, where=spec.where), spec.options)
        late = [state for state in reached if state in own.before]
        if late and late[0] in own.ensures:
            raise RecipeError(
                f"passes {spec.name!r} and {reached[late[0]]!r} do the same, and the second would undo the first",
                where=spec.where,
                hint=own.conflict,
            )
        if late and own.ensures & orders[reached[late[0]]].before:
            raise RecipeError(
                f"passes {spec.name!r} and {reached[late[0]]!r} exclude each other: each would have to come first",
                where=spec.where,
                hint=own.conflict,
            )
        if late:
            raise RecipeError(
                f"pass {spec.name!r} must come before {reached[late[0]]!r}",
                where=spec.where,
                hint=f"{reached[late[0]]!r} needs the model in the state {late[0]!r}, which {spec.name!r} would change",
            )
        order = list(STEPS)
        needed = [order.index(state) for state in own.requires if state in STEPS]
        for state in order[: max(needed, default=-1) + 1]:
            reached.setdefault(state, spec.name)
        for state in own.ensures:
            reached.setdefault(state, spec.name)
        orders[spec.name] = own


def check_plan(plan: Plan, passes: Sequence[PassSpec]) -> None:
    """Raise RecipeError for a pass that cannot work on the sites which it is asked for."""
    for spec in passes:
        entry = PASSES.get(spec.name, where=spec.where)
        if hasattr(entry, "check"):
            entry.check(plan, spec.options)  # type: ignore[attr-defined]


def with_expected_bits(plan: Plan, passes: Sequence[PassSpec]) -> Plan:
    """The plan with what passes that choose bits will do to its sites: mean bits, which sizes follow, and a note."""
    for spec in passes:
        entry = PASSES.get(spec.name, where=spec.where)
        if not hasattr(entry, "expected_bits"):
            continue
        found = entry.expected_bits(plan, spec.options)  # type: ignore[attr-defined]
        sites = tuple(
            replace(planned, expected_bits=found[planned.name][0], notes=(*planned.notes, found[planned.name][1]))
            if planned.name in found
            else planned
            for planned in plan.sites
        )
        plan = replace(plan, sites=sites)
    return plan


def advance(program: Program, state: str, context: PassContext) -> None:
    """Take the core steps up to `state`, skipping those that a pass has done already."""
    for name, step in STEPS.items():
        if name not in program.states:
            step(program, context)
            program.states.add(name)
        if name == state:
            return
    raise InternalError(f"no core step leads to the state {state!r}")


def _group(program: Program, context: PassContext) -> None:
    group_activations(program)


def _observe(program: Program, context: PassContext) -> None:
    insert_observers(program)


def _calibrate(program: Program, context: PassContext) -> None:
    if not program.activations:
        return
    if context.calibration is None:
        raise InternalError("activations are to be quantized, but there are no calibration inputs")
    total = len(context.calibration) * context.calibration.steps
    calibrate(
        program,
        context.calibration,
        device=context.device,
        progress=lambda done: context.progress("calibrating", done, total),
    )


def _round(program: Program, context: PassContext) -> None:
    planned = {p.site.weight: p for p in program.plan.sites if p.weight and p.site.weight}
    for done, (name, site) in enumerate(planned.items()):
        if name not in program.weights and site.weight is not None:
            program.weights[name] = program.nearest_weight(site)
        context.progress("rounding weights", done + 1, len(planned))


def _convert(program: Program, context: PassContext) -> None:
    fold_norms(program)
    convert_activations(program)
    convert_weights(program, program.weights)
    insert_output_shift(program)


STEPS: dict[str, Step] = {
    "grouped": _group,
    "observed": _observe,
    "calibrated": _calibrate,
    "rounded": _round,
    "quantized": _convert,
}
"""The core steps by the state that each leads to, in order."""
