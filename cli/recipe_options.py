"""Options about recipes that several commands have: parameters, where names are looked up, whose signatures count."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmq_fx.errors import ModelError

if TYPE_CHECKING:
    from dmq_fx.sharing.library import SharedLibrary

ParamOption = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="Value of a parameter of the recipe. Repeatable."),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never leave the machine: only what was pulled before.")]
SignedOption = Annotated[
    bool, typer.Option("--require-signed", help="Take only recipes that a trusted key signed (or dmq's own).")
]
TrustedOption = Annotated[
    Path | None,
    typer.Option(
        "--trusted-keys",
        metavar="FILE",
        help="Allowed signers, as ssh-keygen reads them, instead of yours; implies --require-signed.",
    ),
]
RemoteOption = Annotated[str | None, typer.Option("--remote", metavar="NAME", help="Only this remote.")]


def open_library(
    offline: bool = False, signed: bool = False, trusted: Path | None = None, only: str | None = None
) -> SharedLibrary:
    """All places where recipes are looked up, as the options say; a context manager."""
    from dmq_fx.sharing.library import SharedLibrary

    return SharedLibrary(offline=offline, require_signed=signed or trusted is not None, trusted=trusted, only=only)


def check_offline(offline: bool, model: str) -> None:
    """Refuse a model of the hub when nothing may leave the machine."""
    from dmq_fx.models.hub import is_hub_id

    if offline and is_hub_id(model) and not Path(model).exists():
        raise ModelError("offline, and this model is on the hub", where=model, hint="give a folder you downloaded")
