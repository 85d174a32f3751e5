"""`dmq validate`: check recipes without a model."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any

import typer

from dmq_fx.cli.recipe_options import OfflineOption, ParamOption, open_library
from dmq_fx.errors import DmqError, RecipeError


def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipe files or library names.")],
    param: ParamOption = None,
    offline: OfflineOption = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check recipes, with their parents, and print their digests or everything that is wrong with them.

    Example: dmq validate recipe.yaml ptq/w8a8@^1
    """
    with open_library(offline) as library:
        given: dict[str, Any] = {"params": param or (), "library": library}
        reports = [_report(reference, given) for reference in recipes]
    if json:
        reports_only = [{key: value for key, value in report.items() if key != "text"} for report in reports]
        typer.echo(json_module.dumps({"recipes": reports_only}, indent=2))
    else:
        for report in reports:
            typer.echo(report["text"], err=not report["ok"])
    if not all(report["ok"] for report in reports):
        raise typer.Exit(RecipeError.exit_code)


def _report(reference: str, given: dict[str, Any]) -> dict[str, Any]:
    """What is known of one recipe. `text` is the form for people."""
    report: dict[str, Any] = {"reference": reference, "ok": False, "name": None, "version": None, "digest": None}
    from dmq_fx.compiler import resolve_recipe
    from dmq_fx.recipe import problems_of

    try:
        resolved = resolve_recipe(reference, **given)
    except DmqError as error:
        found = problems_of(error) if isinstance(error, RecipeError) else (error,)
        errors = [{"where": one.where, "message": one.message, "hint": one.hint} for one in found]
        return {**report, "errors": errors, "text": str(error)}
    name, version, digest = resolved.recipe.name, resolved.recipe.version, resolved.digest
    found = {"ok": True, "name": name, "version": version, "digest": digest, "errors": []}
    return {**report, **found, "text": f"ok {name} {version} ({digest})"}
