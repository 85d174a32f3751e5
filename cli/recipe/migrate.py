"""`dmq recipe migrate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def migrate_command(
    file: Annotated[Path, typer.Argument(help="A recipe file.")],
    write: Annotated[bool, typer.Option("--write", "-w", help="Change the file instead of printing.")] = False,
) -> None:
    """Write a recipe in the newest version of the language, with its comments. What it says stays the same.

    Older versions are read for ever: this is for using what is new.

    Example: [bold]dmq recipe migrate mine.yaml --write[/]
    """
    from dmq_fx.recipe.formatting import migrate_text
    from dmq_fx.recipe.language import LANGUAGE_VERSION
    from dmq_fx.recipe.source import decode, read_bytes
    from dmq_fx.sharing.cache import write_atomically

    text, before = migrate_text(decode(read_bytes(file), str(file)), str(file))
    if not write:
        sys.stdout.write(text)
        return
    if before == LANGUAGE_VERSION:
        typer.echo(f"{file} is in version {LANGUAGE_VERSION} already")
        return
    write_atomically(file.resolve(), text.encode(), shared=True)  # through a link
    typer.echo(f"{file}: from version {before} to {LANGUAGE_VERSION}")
