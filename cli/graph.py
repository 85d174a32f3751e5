"""`dmq graph`."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from dmq_fx.cli.support import JsonOption, errors, output_console, print_json, progress


def graph_command(
    artifact: Annotated[str, typer.Argument(help="Folder that dmq compile wrote.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the graph (and FILE's overlays beside).")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Show it in Model Explorer, on this machine only.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: one that is free.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")] = True,
    time: Annotated[bool, typer.Option("--time/--no-time", help="Measure each node's share of a call's time.")] = True,
    json: JsonOption = False,
) -> None:
    """The quantized graph for Model Explorer, with SQNR, bits, sizes, roles and times as overlays (viz extra).

    Example: [bold]dmq graph out --serve[/]
    """
    from dmq_fx.artifact.folder import load_program
    from dmq_fx.artifact.opened import open_artifact
    from dmq_fx.inspection import inspect_artifact
    from dmq_fx.inspection.graph import build_graph, build_overlays, node_seconds, write_graph
    from dmq_fx.inspection.text import plain
    from dmq_fx.inspection.viz import need

    need("model_explorer")
    with progress(enabled=not json) as show:
        show("loading", 0, 0)
        program, _ = load_program(open_artifact(artifact))
        show("measuring", 0, 0)
        rows = inspect_artifact(artifact).rows
        graph = build_graph(program, rows)
        overlays = build_overlays(program, rows, node_seconds(program) if time else None)
    label = str(inspect_artifact(artifact).recipe["name"])
    written = write_graph(output or "graph.json", graph, overlays, label) if output or not serve else []
    facts = {"nodes": len(graph.nodes), "overlays": list(overlays), "files": [str(path) for path in written]}
    if json:
        print_json(facts)
    for path in written if not json else []:
        output_console().print(plain(f"wrote {path}"), soft_wrap=True)
    if not serve:
        return
    from dmq_fx.inspection.serve import GraphServer

    with GraphServer(graph, overlays, label, port) as server:
        errors.print(f"serving on {server.url}\npress Ctrl-C to stop", markup=False, highlight=False, soft_wrap=True)
        if open_browser:
            webbrowser.open_new_tab(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            errors.print("stopped")
