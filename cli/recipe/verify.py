"""`dmq recipe verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmq_fx.cli.recipe_options import (
    OfflineOption,
    SignedOption,
    TrustedOption,
    open_library,
)
from dmq_fx.cli.support import JsonOption, print_json
from dmq_fx.errors import ArtifactError
from dmq_fx.pass_api import pass_options


def verify_command(
    artifact: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that dmq compile wrote, or a recipe file.")],
    offline: OfflineOption = False,
    require_signed: SignedOption = False,
    trusted_keys: TrustedOption = None,
    json: JsonOption = False,
) -> None:
    """Compute the digests of an artifact again, and compare the recipes it names with those here; or check a
    recipe file's signature.

    Example: [bold]dmq recipe verify out --require-signed[/]
    """
    from dmq_fx.recipe import resolve
    from dmq_fx.sharing.index import clean
    from dmq_fx.sharing.provenance import NOT_HERE, verify_artifact

    if artifact.is_file():
        with open_library(offline, True, trusted_keys) as library:
            found = resolve(artifact, pass_options=pass_options(), library=library)
        if json:
            print_json({"name": found.recipe.name, "version": found.recipe.version, "digest": found.digest, "ok": True})
        else:
            typer.echo(f"ok {found.recipe.name} {found.recipe.version} ({found.digest}), signed by a trusted key")
        return
    with open_library(offline, require_signed, trusted_keys) as library:
        report = verify_artifact(artifact, library=library, pass_options=pass_options())
    missing = [one for one in report.ancestors if one.found == NOT_HERE and library.require_signed]
    if json:
        print_json({**report.to_json(), "ok": report.ok and not missing})
    else:
        typer.echo(f"{report.files} files have the digests of the manifest")
        typer.echo(f"recipe {report.name} {report.version} has the digest {report.digest}")
        for one in report.ancestors:
            why = f": {clean(one.why)}" if one.why else ""
            typer.echo(f"  {one.recipe.name}@{one.recipe.version}  {one.recipe.sha256[:16]}…  {one.found}{why}")
    if not report.ok or missing:
        what = "differ from those here" if not report.ok else "could not be found with a trusted signature"
        raise ArtifactError(f"recipes that it was made from {what}", where=str(artifact))
