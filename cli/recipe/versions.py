"""`dmq recipe versions`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmq_fx.cli.recipe.rows import print_failures
from dmq_fx.cli.recipe_options import OfflineOption, RemoteOption, open_library
from dmq_fx.cli.support import JsonOption, print_json
from dmq_fx.errors import RecipeError, did_you_mean


def versions_command(
    name: Annotated[str, typer.Argument(help="A name, with a range if only some versions matter: lab/w4a8@^1.")],
    remote: RemoteOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
) -> None:
    """List the versions of a recipe, newest first, and where each is from.

    Example: [bold]dmq recipe versions ptq/w4a8[/]
    """
    from dmq_fx.recipe.versions import parse_reference

    wanted = parse_reference(name)
    with open_library(offline, only=remote) as library:
        rows, failures = library.listed()
    print_failures(failures)
    own = [row for row in rows if row.name == wanted.name]
    if not own:
        hint = did_you_mean(wanted.name, {row.name for row in rows}) or "`dmq recipe list` shows every recipe"
        raise RecipeError(f"there is no recipe {wanted.name!r}", hint=hint)
    allowed = [row for row in own if not wanted.wanted or wanted.newest([row.version]) is not None]
    allowed.sort(key=lambda row: row.version, reverse=True)
    if json:
        print_json({"versions": [{"version": str(row.version), "place": row.place} for row in allowed]})
        return
    for row in allowed:
        typer.echo(f"{row.reference}  {row.place}")
