"""`dmq recipe fmt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmq_fx.errors import RecipeError


def fmt_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recipe files.")],
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 2 if a file would change.")] = False,
) -> None:
    """Write recipe files with one way of indenting and spacing. Comments, quotes and order stay.

    Example: [bold]dmq recipe fmt mine.yaml[/]
    """
    from dmq_fx.recipe.formatting import format_text
    from dmq_fx.recipe.source import decode, read_bytes
    from dmq_fx.sharing.cache import write_atomically

    changed = []
    for path in files:
        data = read_bytes(path)
        written = format_text(decode(data, str(path)), str(path)).encode()
        if written != data:
            changed.append(str(path))
            if not check:
                write_atomically(path.resolve(), written, shared=True)  # through a link
    for name in changed:
        typer.echo(f"{'would change' if check else 'formatted'} {name}")
    if check and changed:
        raise RecipeError(f"not formatted: {', '.join(changed)}", hint="`dmq recipe fmt` formats them")
