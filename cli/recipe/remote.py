"""`dmq recipe remote add|list|remove`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmq_fx.cli.support import JsonOption, print_json


def remote_add(
    name: Annotated[str, typer.Argument(help="Your name for it.")],
    address: Annotated[
        str, typer.Argument(help="A folder, an fsspec address (https://, hf://, s3://, ...), or git+ADDRESS@TAG.")
    ],
    require_signed: Annotated[bool, typer.Option("--require-signed", help="Take nothing unsigned from it.")] = False,
) -> None:
    """Add a remote; remotes are asked in the order in which they were added.

    Example: [bold]dmq recipe remote add lab git+https://HOST/lab/recipes.git@v1[/]
    """
    from dmq_fx.sharing.address import parse_address
    from dmq_fx.sharing.places import user_places
    from dmq_fx.sharing.remotes import Remote, add_remote, check_name

    remote = Remote(check_name(name), parse_address(address), require_signed)
    add_remote(user_places().remotes, remote)
    typer.echo(f"added {remote.name}: {remote.address.text}")


def remote_list(json: JsonOption = False) -> None:
    """List the remotes, in the order in which they are asked.

    Example: [bold]dmq recipe remote list[/]
    """
    from dmq_fx.sharing.places import user_places
    from dmq_fx.sharing.remotes import read_remotes

    remotes = read_remotes(user_places().remotes)
    if json:
        rows = [
            {"name": one.name, "address": one.address.text, "require_signed": one.require_signed} for one in remotes
        ]
        print_json({"remotes": rows})
        return
    if not remotes:
        typer.echo("no remotes; `dmq recipe remote add NAME ADDRESS` adds one", err=True)
    for one in remotes:
        typer.echo(f"{one.name}  {one.address.text}{'  signed only' if one.require_signed else ''}")


def remote_remove(name: Annotated[str, typer.Argument(help="Your name for it.")]) -> None:
    """Remove a remote, and the memory of what its versions were; pulled recipes stay in the cache.

    Example: [bold]dmq recipe remote remove lab[/]
    """
    from dmq_fx.sharing.cache import RecipeCache
    from dmq_fx.sharing.places import user_places
    from dmq_fx.sharing.remotes import remove_remote

    places = user_places()
    removed = remove_remote(places.remotes, name)
    RecipeCache(places.cache).index_path(removed.address.text).unlink(missing_ok=True)
    typer.echo(f"removed {name}")
