"""`dmq recipe push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmq_fx.cli.recipe_options import open_library
from dmq_fx.pass_api import pass_options


def push_command(
    file: Annotated[Path, typer.Argument(help="A recipe file; FILE.sig beside it goes with it.")],
    remote: Annotated[str, typer.Option("--remote", metavar="NAME", help="Where to.")],
) -> None:
    """Publish a recipe. A version that is there with other content is refused.

    Example: [bold]dmq recipe push mine.yaml --remote lab[/]
    """
    from dmq_fx.sharing.cache import RecipeCache
    from dmq_fx.sharing.places import user_places
    from dmq_fx.sharing.push import push
    from dmq_fx.sharing.remotes import find_remote, read_remotes

    places = user_places()
    target = find_remote(read_remotes(places.remotes), remote)
    with open_library() as library:
        done = push(file, target, library=library, pass_options=pass_options(), cache=RecipeCache(places.cache))
    state = "pushed" if done.new else "already there:"
    typer.echo(f"{state} {done.entry.reference}  {done.entry.sha256}{'  signed' if done.entry.signed else ''}")
