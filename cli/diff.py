"""`dmq diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmq_fx.cli.support import JsonOption, errors, output_console, print_json


def diff_command(
    a: Annotated[str, typer.Argument(metavar="A", help="An artifact's folder, a lock file, or a recipe.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What it is compared with.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="What recipes and locks are planned for; the artifact's or lock's own."),
    ] = None,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write a page, side by side.")] = None,
    json: JsonOption = False,
) -> None:
    """Show what differs between two recipes, locks or artifacts. Exit code 0: nothing, 1: something, 2: bad input.

    Example: [bold]dmq diff out/base out/dmq[/]
    """
    from dmq_fx.inspection.diff import difference
    from dmq_fx.inspection.diff_text import diff_lines
    from dmq_fx.inspection.sides import load_sides
    from dmq_fx.inspection.text import plain

    found = difference(*load_sides(a, b, model=model))
    if html is not None:
        from dmq_fx.inspection.diff_report import write_diff

        write_diff(html, found)
        errors.print(plain(f"wrote {html}"), soft_wrap=True)
    if json:
        print_json(found.to_json())
    else:
        console = output_console()
        for part in diff_lines(found):
            console.print(part)
    if not found.same:
        raise typer.Exit(1)
