"""Recipes × models, checked as the CI of a library does: valid, plans, and with a compile its gates; JUnit XML."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dmq_fx.compiler import compile, plan, resolve_recipe
from dmq_fx.errors import DmqError, RecipeError
from dmq_fx.gates import describe_failures
from dmq_fx.recipe import Library
from dmq_fx.sharing.index import clean

T = TypeVar("T")
PASSED, FAILED, MISSED, SKIPPED = "passed", "failed", "missed", "skipped"
"""`missed`: a gate of `expect:` that does not hold."""


@dataclass(frozen=True)
class Case:
    """One check. what: `valid`, `plan`, `compile` or `expect NAME`; model: None where it needs none."""

    recipe: str
    model: str | None
    what: str
    status: str
    message: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def check_recipes(
    recipes: Sequence[str],
    models: Sequence[str],
    *,
    library: Library,
    overrides: Sequence[str] = (),
    params: Sequence[str] = (),
    compiles: bool = False,
    progress: Callable[[str], None] = lambda what: None,
) -> list[Case]:
    """Every check of every recipe, with every model. Errors of one are a case and do not keep the others from it.

    compiles: compile each pair, in a temporary folder, and measure its gates; else gates are cases that were skipped.
    """
    chosen: dict[str, Any] = {"overrides": overrides, "params": params, "library": library}
    cases: list[Case] = []
    for recipe in recipes:
        progress(recipe)
        case, resolved = _case(recipe, None, "valid", partial(resolve_recipe, recipe, **chosen))
        cases.append(case)
        for model in models:
            if resolved is None:
                cases.append(Case(recipe, model, "plan", SKIPPED, "the recipe is not valid"))
                continue
            progress(f"{recipe} on {model}")
            case, planned = _case(recipe, model, "plan", partial(plan, recipe, model=model, **chosen))
            cases.append(case)
            if compiles and planned is not None:
                cases += _compiled(recipe, model, chosen)
                continue
            why = "measured by a compile (--compile)" if planned is not None else "there is no plan"
            cases += [Case(recipe, model, f"expect {gate}", SKIPPED, why) for gate in resolved.recipe.expect]
    return cases


def expand(references: Sequence[str]) -> list[str]:
    """Every recipe that `references` name; a folder stands for the recipe files in it."""
    found: list[str] = []
    for reference in references:
        folder = Path(reference)
        if not folder.is_dir():
            found.append(reference)
            continue
        files = sorted(str(path) for path in folder.rglob("*.yaml") if path.is_file())
        if not files:
            raise RecipeError("there is no recipe in this folder", where=reference, hint="recipe files end in .yaml")
        found += files
    return found


def junit_xml(cases: Iterable[Case]) -> bytes:
    """The cases as JUnit XML, a suite a recipe."""
    from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

    kinds = {FAILED: Error, MISSED: Failure, SKIPPED: Skipped}
    document = JUnitXml("dmq recipe check")
    suites: dict[str, list[Case]] = {}
    for case in cases:
        suites.setdefault(case.recipe, []).append(case)
    for recipe, members in suites.items():
        suite = TestSuite(clean(recipe))
        for case in members:
            test = TestCase(
                case.what, clean(f"{case.recipe} on {case.model}" if case.model else case.recipe), case.seconds
            )
            if case.status in kinds:
                test.result = [kinds[case.status](clean(case.message, 2000))]
            suite.add_testcase(test)
        document.add_testsuite(suite)
    document.update_statistics()
    return document.tostring()


def _case(recipe: str, model: str | None, what: str, work: Callable[[], T]) -> tuple[Case, T | None]:
    """The case of a piece of work, and what it gave."""
    started = time.perf_counter()
    try:
        made = work()
    except DmqError as error:
        return Case(recipe, model, what, FAILED, str(error), time.perf_counter() - started), None
    return Case(recipe, model, what, PASSED, seconds=time.perf_counter() - started), made


def _compiled(recipe: str, model: str, chosen: dict[str, Any]) -> list[Case]:
    with tempfile.TemporaryDirectory(prefix="dmq-check-") as folder:
        work = partial(compile, recipe, model=model, output=Path(folder) / "out", **chosen)
        case, result = _case(recipe, model, "compile", work)
    cases = [case]
    for gate in result.gates if result else ():
        status = PASSED if gate.passed else MISSED
        cases.append(Case(recipe, model, f"expect {gate.name}", status, describe_failures((gate,))))
    return cases
