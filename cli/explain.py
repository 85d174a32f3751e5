"""`dmq explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dmq_fx.cli.support import JsonOption, output_console, print_json

if TYPE_CHECKING:
    from dmq_fx.inspection.explain import Explanation


def explain_command(
    site: Annotated[str, typer.Argument(help="Name of a site, as dmq inspect shows it.")],
    artifact: Annotated[str, typer.Option("--artifact", "-a", help="Folder that dmq compile wrote.")],
    graph: Annotated[
        bool, typer.Option("--graph/--no-graph", help="Trace the model again, to show the site's neighbours.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Say why a site of an artifact is as it is: its rule, its scheme, the numbers that decided, its neighbours.

    Example: [bold]dmq explain mid_block.resnets.0.conv1 --artifact out[/]
    """
    from dmq_fx.inspection import inspect_artifact
    from dmq_fx.inspection.explain import explain_artifact

    print_explanation(explain_artifact(inspect_artifact(artifact), site, graph=graph), json)


def print_explanation(found: Explanation, json: bool) -> None:
    """Why a site is as it is, for `dmq explain` and `dmq plan --explain`."""
    from dmq_fx.inspection.explain_text import explain_lines

    if json:
        print_json(found.to_json())
        return
    console = output_console()
    for line in explain_lines(found):
        console.print(line, soft_wrap=True)
