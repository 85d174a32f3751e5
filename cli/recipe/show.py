"""`dmq recipe show`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dmq_fx.cli.recipe_options import (
    OfflineOption,
    ParamOption,
    SignedOption,
    TrustedOption,
    open_library,
)
from dmq_fx.cli.support import JsonOption, SetOption, print_json
from dmq_fx.pass_api import pass_options


def show_command(
    recipe: Annotated[str, typer.Argument(help="A recipe file or a name, as name@^1.2.")],
    set_: SetOption = None,
    param: ParamOption = None,
    offline: OfflineOption = False,
    require_signed: SignedOption = False,
    trusted_keys: TrustedOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a recipe resolves to: its parents, and every key with its value.

    Example: [bold]dmq recipe show ptq/w4a8@^1[/]
    """
    from dmq_fx.recipe import resolve
    from dmq_fx.recipe.dump import to_yaml
    from dmq_fx.recipe.keys import to_plain
    from dmq_fx.sharing.index import clean

    with open_library(offline, require_signed, trusted_keys) as library:
        found = resolve(recipe, overrides=set_ or (), params=param or (), pass_options=pass_options(), library=library)
    files = [*([found.file] if found.file else []), *found.parents]
    if json:
        facts = {"digest": found.digest, "files": [to_plain(one) for one in files], "params": dict(found.params)}
        print_json({**facts, "conditional": found.conditional, "recipe": found.document})
        return
    lines = [f"# digest {found.digest}"]
    for place, one in enumerate(files):
        what = "file" if place == 0 and found.file else "parent"
        origin = f" from {clean(one.origin)}" if one.origin else ""
        lines.append(f"# {what} {one.name}@{one.version}{origin} (SHA-256 {one.sha256})")
    lines += [f"# parameter {name} = {clean(str(value))}" for name, value in found.params.items()]
    lines += ["# some models have overlays over this: `dmq plan --model` applies them"] if found.conditional else []
    sys.stdout.write("\n".join(lines) + "\n" + to_yaml(found.document))
