"""`dmq recipe pull`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmq_fx.cli.recipe_options import (
    RemoteOption,
    SignedOption,
    TrustedOption,
    open_library,
)
from dmq_fx.cli.support import JsonOption, print_json
from dmq_fx.errors import RemoteError
from dmq_fx.pass_api import pass_options


def pull_command(
    recipes: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names, with the versions that will do.")],
    remote: RemoteOption = None,
    require_signed: SignedOption = False,
    trusted_keys: TrustedOption = None,
    json: JsonOption = False,
) -> None:
    """Fetch recipes and all that they extend into the cache, so that they can be used with --offline.

    Example: [bold]dmq recipe pull lab/w4a8@^1[/]
    """
    from dmq_fx.recipe import resolve
    from dmq_fx.recipe.keys import to_plain
    from dmq_fx.recipe.versions import parse_reference
    from dmq_fx.sharing.index import clean

    pulled = []
    for recipe in recipes:
        wanted = None
        if remote is not None:  # of that one; its parents may be elsewhere
            with open_library(False, require_signed, trusted_keys, remote) as only:
                wanted = only.find(parse_reference(recipe))
                recipe = wanted.reference
        with open_library(False, require_signed, trusted_keys) as library:
            if wanted is not None and library.find(parse_reference(recipe)).sha256 != wanted.sha256:
                hint = "remotes are asked in the order in which they were added"
                raise RemoteError(f"{recipe} is another one in a place that is asked before", where=remote, hint=hint)
            found = resolve(recipe, pass_options=pass_options(), library=library)
        pulled.append([to_plain(one) for one in ([found.file] if found.file else []) + list(found.parents)])
    if json:
        print_json({"pulled": pulled})
        return
    for files in pulled:
        for place, one in enumerate(files):
            origin = f"  {clean(one['origin'])}" if "origin" in one else ""
            typer.echo(f"{'  ' if place else ''}{one['name']}@{one['version']}  {one['sha256'][:16]}…{origin}")
