"""`dmq inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmq_fx.cli.support import JsonOption, output_console, print_json


def inspect_command(
    artifact: Annotated[str, typer.Argument(help="Folder that dmq compile wrote.")],
    site: Annotated[
        str | None, typer.Option("--site", metavar="GLOB", help="Only sites whose name matches; or `re:EXPRESSION`.")
    ] = None,
    role: Annotated[
        str | None, typer.Option("--role", help="Only sites of this role, such as skip_connection.")
    ] = None,
    op: Annotated[str | None, typer.Option("--op", help="Only sites that compute this, such as conv2d.")] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="sqnr|size|bops", help="A list, the worst or largest first.")
    ] = None,
    worst: Annotated[
        int | None, typer.Option("--worst", min=1, metavar="N", help="Only the first N of the list (by SQNR).")
    ] = None,
    depth: Annotated[int | None, typer.Option("--depth", min=1, help="Levels of modules that are opened.")] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write the report as one self-contained page.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hashes of all files, weights too.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what was done to every site of an artifact: precision, folds, size, error (SQNR in dB).

    Example: [bold]dmq inspect out --site 'up_blocks.*.conv_shortcut'[/]
    """
    from dmq_fx.errors import DmqError
    from dmq_fx.inspection import inspect_artifact, ranking_table, select, site_tree
    from dmq_fx.inspection.inspected import READ
    from dmq_fx.inspection.summary import summary_json, summary_lines, title
    from dmq_fx.inspection.text import plain

    if depth is not None and (sort or worst or html is not None or json):
        raise DmqError("--depth closes modules of the tree; a list, a page and JSON have none")
    found = inspect_artifact(artifact, verify=None if verify else READ)
    rows = select(found.rows, site=site, role=role, op=op, sort=sort, worst=worst, where=artifact)
    if html is not None:
        from dmq_fx.inspection.report import write_report

        write_report(html, found, rows)
    if json:
        print_json(summary_json(found, rows))
        return
    console = output_console()
    if html is not None:
        console.print(plain(f"wrote {html}"), soft_wrap=True)
        return
    if sort or worst:
        console.print(plain(title(found), "bold"))
        console.print(ranking_table(rows, found.slots))
    else:
        console.print(site_tree(title(found), rows, slots=found.slots, depth=depth))
    console.print()
    for line in summary_lines(found):
        console.print(plain(line))
