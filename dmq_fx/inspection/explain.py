"""Why a site is as it is: `dmq explain` for what was compiled, `dmq plan --explain` for what would be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmq_fx.errors import DmqError, did_you_mean
from dmq_fx.inspection.inspected import Inspected
from dmq_fx.inspection.report import site_facts
from dmq_fx.inspection.scheme_text import scheme_text
from dmq_fx.inspection.why import Reason, chain_files, rule_reasons, scheme_reasons, whole_sites

if TYPE_CHECKING:
    from dmq_fx.planning import PlannedSite
    from dmq_fx.program.program import Program
    from dmq_fx.recipe import Library


@dataclass(frozen=True)
class Explanation:
    """facts: (what, text). rules: those that match the site, the deciding one first; empty: none does. scheme: where
    its values are written. numbers: what passes reported of the site, by pass. neighbours: lines of the graph."""

    site: str
    facts: tuple[tuple[str, str], ...]
    rules: tuple[Reason, ...]
    scheme: tuple[Reason, ...]
    numbers: tuple[tuple[str, Any], ...]
    neighbours: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "site": self.site,
            "facts": dict(self.facts),
            "rules": [vars(reason) for reason in self.rules],
            "scheme": [vars(reason) for reason in self.scheme],
            "numbers": [{"pass": name, "reported": value} for name, value in self.numbers],
            "neighbours": list(self.neighbours),
            "notes": list(self.notes),
        }


def explain_artifact(found: Inspected, name: str, *, graph: bool = True) -> Explanation:
    """Why a site of an artifact is as it is; graph: trace the model again, for the neighbourhood.

    Rules and values are those of the recipe's own files, where dmq's library has them, else the lock's.
    Raises ArtifactError for a site that is not there.
    """
    from dmq_fx.inspection.origin import recipe_origin
    from dmq_fx.pass_api import pass_options
    from dmq_fx.recipe.source import read_source

    row = found.row(name)
    tree = read_source(found.lock_path).tree
    lock = tree.get("lock")
    written = lock.plain() if lock else {}
    overrides = written.get("overrides", [])
    notes = [f"--set {override} is in the lock already" for override in overrides]
    origin = recipe_origin(written, found.recipe["digest"], pass_options())
    if origin is None:
        files, decided, overrides = [(str(found.lock_path), tree)], _rule_place(tree, row), []
        notes.append("the lock has no values that were overridden: dmq's library has no such recipe")
    else:
        files, place = origin.files, _rule_number(row)
        decided = None if place is None else origin.resolved.recipe.rules[place].where
    lines: tuple[str, ...] = ()
    readers = [name]
    if graph:
        try:
            lines, readers = _graph_of(found.path, name)
        except DmqError as error:
            notes.append(f"no neighbourhood: {error.message}")
    facts = [(what, text) for what, text in site_facts(found, row) if text]
    return Explanation(
        site=name,
        facts=(*facts, *_number_facts(found, name)),
        rules=tuple(rule_reasons(files, whole_sites(row, found.table["splits"]), decided)),
        scheme=tuple(scheme_reasons(files, overrides, row["scheme"])),
        numbers=tuple(_reported(found.report["passes"], readers)),
        neighbours=lines,
        notes=tuple(notes),
    )


def explain_plan(
    recipe: str | Path,
    name: str,
    *,
    model: str,
    overrides: Sequence[str] = (),
    params: Sequence[str] = (),
    library: Library | None = None,
) -> Explanation:
    """Why a recipe gives a site of a model its scheme, without weights. Raises RecipeError, ModelError, DmqError."""
    from dmq_fx.compiler import plan_with_graph
    from dmq_fx.inspection.neighbours import neighbourhood
    from dmq_fx.pass_api import pass_options
    from dmq_fx.recipe.chain import read_chain
    from dmq_fx.recipe.checks import Checker
    from dmq_fx.sharing.library import SharedLibrary

    resolved, traced, made = plan_with_graph(recipe, model=model, overrides=overrides, params=params, library=library)
    planned = made.by_name.get(name)
    if planned is None:
        hint = did_you_mean(name, made.by_name) or "`dmq plan` lists the sites"
        raise DmqError(f"no site is called {name!r}", where=str(recipe), hint=hint)
    checker = Checker(pass_options())
    with SharedLibrary() if library is None else nullcontext(library) as places:
        files = chain_files(read_chain(recipe, checker, places, params), resolved.overlays)
    row = planned.to_json()
    sites = {one.site.node: one.name for one in made.sites}
    return Explanation(
        site=name,
        facts=tuple(_plan_facts(planned, resolved.recipe.calibration.steps)),
        rules=tuple(rule_reasons(files, whole_sites(row), planned.rule_where)),
        scheme=tuple(scheme_reasons(files, overrides, planned.scheme)),
        numbers=(),
        neighbours=tuple(neighbourhood(traced.graph, planned.site.node, sites)),
    )


def _rule_place(tree: Any, row: Mapping[str, Any]) -> str | None:
    """Where the rule of a row stands in the lock."""
    place = _rule_number(row)
    entries = tree.get("rules").entries()
    return str(entries[place].where) if place is not None and place < len(entries) else None


def _rule_number(row: Mapping[str, Any]) -> int | None:
    """Place of the rule of a row among the resolved recipe's."""
    return int(row["rule"].removeprefix("rules[").removesuffix("]")) if row["rule"] else None


def _plan_facts(planned: PlannedSite, steps: int) -> Iterator[tuple[str, str]]:
    row = planned.to_json()
    yield "operation", f"{row['op']} {'×'.join(map(str, row['shape']))}".strip()
    yield "roles", ", ".join(row["roles"])
    yield "scheme", f"{scheme_text(row, steps)} ({row['scheme']})"
    yield "passes", ", ".join(row["passes"])
    yield "size", f"{row['bytes'] / 1000:.1f} kB"
    yield "work", f"{row['macs'] / 1e6:.1f} MMACs, {row['bops'] / 1e9:.2f} GBOPs a sample"
    if row["notes"]:
        yield "notes", "; ".join(row["notes"])


def _number_facts(found: Inspected, name: str) -> Iterator[tuple[str, str]]:
    """Peaks and ranges, where they were kept."""
    known = found.statistics.of(name) if found.statistics is not None else None
    for kind in ("input", "weight"):
        pair = getattr(known, kind, None)
        if pair is None:
            continue
        before, after = pair.before, pair.after
        spread = before.peak / max(float(sorted(before.channels)[len(before.channels) // 2]), 1e-30)
        text = f"peak {before.peak:.4g}, {spread:.1f} times the median channel's"
        if before.kurtosis is not None:
            text += f", kurtosis {before.kurtosis:.4g}"
        if pair.scaled:
            spread = after.peak / max(float(sorted(after.channels)[len(after.channels) // 2]), 1e-30)
            text += f"; after scaling peak {after.peak:.4g}, {spread:.1f} times"
        yield f"{kind} values", text


def _graph_of(path: Path, name: str) -> tuple[tuple[str, ...], list[str]]:
    """The neighbourhood, and the sites that read the same integers, which passes report under one name."""
    from dmq_fx.artifact.folder import load_program
    from dmq_fx.artifact.opened import open_artifact
    from dmq_fx.inspection.neighbours import neighbourhood

    program: Program = load_program(open_artifact(path))[0]
    planned = program.plan.by_name[name]
    nodes = {one.site.node: one.name for one in program.plan.sites}
    readers = [name]
    for operand in planned.site.operands:
        activation = program.activation_of(planned, operand)
        readers += activation.sites if activation is not None else ()
    lines = neighbourhood(program.graph_module.graph, planned.site.node, nodes)
    return tuple(lines), list(dict.fromkeys(readers))


def _reported(passes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Whatever the passes' reports hold under a site's name, or of the unit that it is in."""
    for report in passes:
        for path, value in _about(report, names):
            yield f"{report['pass']} {path}".strip(), value


def _about(value: Any, names: Sequence[str], path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        unit = value.get("unit", value.get("site"))
        if isinstance(unit, str) and any(name == unit or name.startswith(f"{unit}.") for name in names[:1]):
            yield path, dict(value)
            return
        for key, inner in value.items():
            if key in names:
                yield path if key == names[0] else f"{path} (of {key}, which reads the same)", inner
            else:
                yield from _about(inner, names, f"{path}.{key}" if path else key)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            if isinstance(inner, str) and inner == names[0]:
                yield path, True
            else:
                yield from _about(inner, names, path)
