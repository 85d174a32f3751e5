"""`dmq recipe sign`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sign_command(
    file: Annotated[Path, typer.Argument(help="A recipe file.")],
    key: Annotated[
        Path, typer.Option("--key", help="A private key of OpenSSH, or the public key of one that an agent holds.")
    ],
) -> None:
    """Sign a recipe file with an SSH key: writes FILE.sig, which `push` publishes with it.

    Example: [bold]dmq recipe sign mine.yaml --key ~/.ssh/id_ed25519[/]
    """
    from dmq_fx.sharing.signing import sign

    typer.echo(f"wrote {sign(file, key.expanduser())}")
