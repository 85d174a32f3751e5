"""Waiting while a graph is served."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping
from typing import Any

from dmq_fx.cli.support import errors


def serve_graph(graph: Any, overlays: Mapping[str, Any], label: str, port: int, *, open_browser: bool) -> None:
    """Serve until interrupted; the address goes to stderr, for `--json`'s sake."""
    from dmq_fx.inspection.serve import GraphServer

    with GraphServer(graph, overlays, label, port) as server:
        errors.print(f"serving on {server.url}\npress Ctrl-C to stop", markup=False, highlight=False, soft_wrap=True)
        if open_browser:
            webbrowser.open_new_tab(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            errors.print("stopped")
