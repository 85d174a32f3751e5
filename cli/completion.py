"""`dmq completion`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Shell(str, Enum):
    """Shells that there is a script for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion_command(shell: Annotated[Shell, typer.Argument(help="Which shell.")]) -> None:
    """Print the script that completes dmq's commands and options.

    Example: [bold]dmq completion bash >> ~/.bashrc[/] (zsh: a file _dmq in a folder of $fpath; fish:
    ~/.config/fish/completions/dmq.fish)
    """
    from typer.completion import get_completion_script  # pyright: ignore[reportPrivateImportUsage]

    typer.echo(get_completion_script(prog_name="dmq", complete_var="_DMQ_COMPLETE", shell=shell.value))
