"""`dmq recipe search`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmq_fx.cli.recipe.rows import print_failures, print_rows
from dmq_fx.cli.recipe_options import OfflineOption, RemoteOption, open_library
from dmq_fx.cli.support import JsonOption, errors, print_json


def search_command(
    words: Annotated[list[str], typer.Argument(help="Words that all stand in the name or the summary.")],
    remote: RemoteOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
) -> None:
    """Search recipes by words of their names and summaries. Reads indexes, no recipes.

    Example: [bold]dmq recipe search 4-bit weights[/]
    """
    from dmq_fx.sharing.catalog import catalog, search

    with open_library(offline, only=remote) as library:
        rows, failures = library.listed()
    found = search(catalog(rows), words)
    print_failures(failures)
    if json:
        print_json({"recipes": [row.to_json() for row in found]})
    elif found:
        print_rows(found)
    else:
        errors.print("no recipe has all of these words; `dmq recipe list` shows every one")
