"""`dmq recipe lock`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmq_fx.cli.recipe_options import (
    OfflineOption,
    ParamOption,
    SignedOption,
    TrustedOption,
    open_library,
)
from dmq_fx.cli.support import SetOption
from dmq_fx.errors import RecipeError
from dmq_fx.pass_api import pass_options


def lock_command(
    recipe: Annotated[str, typer.Argument(help="A recipe file or a name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.")] = Path("recipe.lock.yaml"),
    set_: SetOption = None,
    param: ParamOption = None,
    offline: OfflineOption = False,
    require_signed: SignedOption = False,
    trusted_keys: TrustedOption = None,
) -> None:
    """Write a recipe with all its parents and defaults as a lock, for `dmq compile --locked`.

    A recipe with overlays is locked by a compile, which knows the model.

    Example: [bold]dmq recipe lock lab/w4a8@^1 -o recipe.lock.yaml[/]
    """
    from dmq_fx.recipe import lock_document, resolve, write_lock

    with open_library(offline, require_signed, trusted_keys) as library:
        found = resolve(recipe, overrides=set_ or (), params=param or (), pass_options=pass_options(), library=library)
    if found.conditional:
        hint = "compile it, and keep the artifact's recipe.lock.yaml"
        raise RecipeError("this recipe has overlays, so what it is depends on the model", where=recipe, hint=hint)
    seed = found.recipe.calibration.seed
    write_lock(output, lock_document(found, model={}, environment={}, seed=seed))
    typer.echo(f"wrote {output}: {found.recipe.name} {found.recipe.version} ({found.digest})")
