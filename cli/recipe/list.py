"""`dmq recipe list`."""

from __future__ import annotations

from dmq_fx.cli.recipe.rows import print_failures, print_rows
from dmq_fx.cli.recipe_options import OfflineOption, RemoteOption, open_library
from dmq_fx.cli.support import JsonOption, print_json


def list_command(remote: RemoteOption = None, offline: OfflineOption = False, json: JsonOption = False) -> None:
    """List every recipe that can be named: dmq's own, yours, and those of remotes.

    Example: [bold]dmq recipe list --remote lab[/]
    """
    from dmq_fx.sharing.catalog import catalog

    with open_library(offline, only=remote) as library:
        rows, failures = library.listed()
    found = catalog(rows)
    print_failures(failures)
    if json:
        print_json({"recipes": [row.to_json() for row in found]})
    else:
        print_rows(found)
