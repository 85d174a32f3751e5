"""`dmq recipe check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from dmq_fx.cli.recipe_options import (
    OfflineOption,
    ParamOption,
    SignedOption,
    TrustedOption,
    check_offline,
    open_library,
)
from dmq_fx.cli.support import JsonOption, SetOption, errors, output_console, print_json
from dmq_fx.errors import GateError, RecipeError


def check_command(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Files, names, or folders of files.")],
    model: Annotated[list[str] | None, typer.Option("--model", help="Also plan on this model. Repeatable.")] = None,
    compiles: Annotated[
        bool, typer.Option("--compile", help="Also compile each recipe for each model, and measure `expect:`.")
    ] = False,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.")] = None,
    set_: SetOption = None,
    param: ParamOption = None,
    offline: OfflineOption = False,
    require_signed: SignedOption = False,
    trusted_keys: TrustedOption = None,
    json: JsonOption = False,
) -> None:
    """Check recipes on models, as the CI of a shared library does: exit 2 for an error, 3 for a gate that is missed.

    Example: [bold]dmq recipe check recipes/ --model builtin:ddpm-mnist --junit report.xml[/]
    """
    from dmq_fx.recipe_check import FAILED, MISSED, check_recipes, expand, junit_xml
    from dmq_fx.sharing.cache import write_atomically

    if compiles and not model:
        raise RecipeError("--compile needs a model", hint="give --model")
    for one in model or ():
        check_offline(offline, one)
    with open_library(offline, require_signed, trusted_keys) as library:
        cases = check_recipes(
            expand(recipes),
            model or (),
            library=library,
            overrides=set_ or (),
            params=param or (),
            compiles=compiles,
            progress=lambda what: errors.print(f"checking {what}", markup=False, highlight=False),
        )
    if junit is not None:
        write_atomically(junit, junit_xml(cases), shared=True)
    if json:
        print_json({"cases": [case.to_json() for case in cases]})
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("recipe", "model", "check", "result", ""):
            table.add_column(heading, overflow="fold")
        for case in cases:
            row = (case.recipe, case.model or "", case.what, case.status, case.message)
            table.add_row(*(Text(part) for part in row))
        output_console().print(table)
    counts = {status: sum(case.status == status for case in cases) for status in (FAILED, MISSED)}
    if counts[FAILED]:
        raise RecipeError(f"{counts[FAILED]} of {len(cases)} checks failed")
    if counts[MISSED]:
        raise GateError(f"{counts[MISSED]} of {len(cases)} checks are gates that do not hold")
