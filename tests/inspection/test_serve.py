"""Model Explorer on loopback: what is served, what is refused, and that nothing leaves the machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from headless import browser, needs_browser

from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.errors import DmqError
from dmq_fx.inspection import Inspected
from dmq_fx.inspection.graph import build_graph, build_overlays
from dmq_fx.inspection.serve import HOST, GraphServer


@pytest.fixture(scope="module")
def server(folded: Path, found: Inspected) -> Iterator[GraphServer]:
    program = load_program(open_artifact(folded))[0]
    label = "a/<script>alert(1)</script>"
    with GraphServer(build_graph(program, found.rows), build_overlays(program, found.rows), label) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join(10)


def get(server: GraphServer, path: str, host: str | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection(HOST, server.server_port, timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_graph_and_its_overlays(server: GraphServer, found: Inspected) -> None:
    graphs = json.loads(get(server, "/api/v1/load_graphs_json?graph_index=0")[1])
    assert len(graphs["graphs"][0]["nodes"]) > len(found.rows)
    content = json.loads(get(server, "/api/v1/load_node_data?node_data_index=4")[1])["content"]
    assert json.loads(content)["graph"]["results"]
    for index in ("99", "-1", "x", "%C2%B2"):
        assert get(server, f"/api/v1/load_node_data?node_data_index={index}")[0] == 404
    assert get(server, "/check_health") == (200, b"model_explorer_ok")


def test_the_page_names_no_other_host(server: GraphServer) -> None:
    status, body = get(server, "/")
    whole = (server.app / "index.html").read_bytes()
    assert status == 200 and b"gstatic" in whole and b"gstatic" not in body
    assert b"<app-root" in body and b"<script" in body


def test_a_browser_that_went_away_is_no_error(server: GraphServer, capfd: pytest.CaptureFixture[str]) -> None:
    for error in (BrokenPipeError(), ConnectionResetError(), ValueError("a fault")):
        try:
            raise error
        except (OSError, ValueError):
            server.handle_error(None, ("127.0.0.1", 1))
    assert capfd.readouterr().err.count("Traceback") == 1


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/read_text_file?path=/etc/passwd",
        "/../__init__.py",
        "/%2e%2e/__init__.py",
        "//etc/passwd",
        "/no",
        "/%00",
        "/" + 300 * "a",
    ],
)
def test_no_other_file_is_served(server: GraphServer, path: str) -> None:
    assert get(server, path) == (404, b"")


def test_another_name_for_this_host_is_refused(server: GraphServer) -> None:
    """A page from elsewhere whose name points here must not read the graph."""
    assert get(server, "/api/v1/load_graphs_json", host="evil.example")[0] == 403
    assert get(server, "/check_health", host=f"localhost:{server.server_port}")[0] == 200


def test_only_loopback_and_a_port_that_is_free(server: GraphServer) -> None:
    from model_explorer.graph_builder import Graph

    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(DmqError, match=f"cannot listen on port {server.server_port}"):
        GraphServer(Graph(id="graph"), {}, "x", server.server_port)


@needs_browser
@pytest.mark.slow
def test_the_graph_is_drawn_with_its_overlays(server: GraphServer) -> None:
    with browser() as opened:
        watched = opened()
        page = watched.page
        page.goto(server.url)
        page.get_by_text("SQNR (dB)").first.wait_for(timeout=120_000)
        page.get_by_text("Aggregated stats").wait_for(timeout=60_000)
        assert {urlsplit(url).hostname for url in watched.requests if url.startswith("http")} == {"127.0.0.1"}
        assert watched.errors == []
        assert "a <script>alert(1)< script>" in page.inner_text("body")
        for name in ("role", "size (bytes)", "weight bits", "activation bits"):
            assert page.get_by_text(name).count() >= 1
