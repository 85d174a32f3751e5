"""`dmq recipe new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmq_fx.cli.recipe_options import OfflineOption, open_library
from dmq_fx.errors import RecipeError
from dmq_fx.pass_api import pass_options


def new_command(
    name: Annotated[str, typer.Argument(help="Name of the new recipe, as family/name.")],
    parent: Annotated[str, typer.Option("--from", metavar="PARENT", help="The recipe that it extends.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; NAME.yaml here if left out.")] = None,
    offline: OfflineOption = False,
) -> None:
    """Write a recipe that extends another one, and the schema beside it that editors check it with.

    Example: [bold]dmq recipe new lab/w4a8 --from ptq/w4a8@^1[/]
    """
    from dmq_fx.recipe import resolve
    from dmq_fx.recipe.scaffold import new_text, write_schema

    target = output or Path(f"{name.rpartition('/')[2]}.yaml")
    with open_library(offline) as library:
        text = new_text(name, parent, resolve(parent, pass_options=pass_options(), library=library), target.parent)
    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError("a recipe file ends in .yaml", where=str(target))
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
        schema = write_schema(target.parent)
    except FileExistsError:
        raise RecipeError("there is a file already", where=str(target), hint="choose another with -o") from None
    except OSError as error:
        raise RecipeError(f"cannot write the file: {error.strerror}", where=str(target)) from error
    typer.echo(f"wrote {target} and {schema.name}")
