"""Servers that fail, lie, take their time, and lead elsewhere."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from http.server import SimpleHTTPRequestHandler
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from dmq_fx.errors import RemoteError
from dmq_fx.sharing import transport
from dmq_fx.sharing.address import parse_address
from dmq_fx.sharing.cache import RecipeCache

from .conftest import Make, Server, failure, files, publish, pull, recipe_text

Handler = SimpleHTTPRequestHandler


def truncated(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"dmq: 2\n")
    return True


def cut_without_saying(handler: Handler) -> bool:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"dmq: 2\n")
    return True


def endless(handler: Handler) -> bool:
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        for _ in range(10_000):
            handler.wfile.write(b"x" * 10_000)
    return True


def slow(handler: Handler) -> bool:
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)
    return True


def bomb(handler: Handler) -> bool:
    """100 MB of zeros, compressed to 100 kB, for whom asked for none of it."""
    import gzip

    data = gzip.compress(bytes(100_000_000))
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    with suppress(OSError):
        handler.wfile.write(data)
    return True


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (truncated, "remote lab: " + "lab/w4@1.0.0 is cut short"),
        (cut_without_saying, "lab/w4@1.0.0 is cut short: 7 of "),
        (endless, "the file is larger than the "),
        (slow, "not read within 1 s"),
        (bomb, "the file is larger than the "),
    ],
)
def test_servers_that_fail(
    server: Server,
    library: Make,
    cache: RecipeCache,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Handler], bool],
    message: str,
) -> None:
    (entry,) = publish(server.folder, recipe_text())
    server.faults[entry.path] = fault
    places = library(server.url)
    places.remotes[0]._session = transport.FilesystemSession(parse_address(server.url), seconds=1.0)
    started = time.monotonic()
    said = failure(places)
    assert message in said or (fault is truncated and "cannot be read" in said)
    assert time.monotonic() - started < 20
    assert files(cache) == []  # nothing half-written, nothing under a wrong name
    del server.faults[entry.path]
    pull(library(), "lab/w4")
    assert files(cache) == [f"{entry.sha256}.yaml"]


def test_a_server_that_lies_about_its_hash(server: Server, library: Make, cache: RecipeCache) -> None:
    (entry,) = publish(server.folder, recipe_text())
    other = recipe_text(bits=5)
    assert len(other) == entry.size
    (server.folder / entry.path).write_text(other)
    said = failure(library(server.url))
    assert "lab/w4@1.0.0 is not what the index says: SHA-256 " in said and "tampered" in said
    assert files(cache) == []


def test_errors_that_pass_are_tried_again(server: Server, library: Make) -> None:
    (entry,) = publish(server.folder, recipe_text())
    left = [503, 503]

    def busy(handler: Handler) -> bool:
        if not left:
            return False
        handler.send_error(left.pop())
        return True

    server.faults["index.json"] = busy
    pull(library(server.url), "lab/w4")
    assert server.asked("index.json") == 3 and server.asked(entry.path) == 1
    left.extend([503] * 5)
    assert "cannot be read: 503" in failure(library(), "lab/w4@^1")


def test_refusals_are_not_tried_again(server: Server, library: Make) -> None:
    server.faults["index.json"] = lambda handler: (handler.send_error(403), True)[1]
    assert "cannot be read: 403" in failure(library(server.url))
    assert server.asked("index.json") == 1
    server.faults.clear()
    assert "there is no index.json at http://127.0.0.1" in failure(library())


def test_a_server_that_is_gone(library: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = failure(library(f"http://127.0.0.1:{port}"))
    assert "cannot be read" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("address", "steps", "refused"),
    [
        ("https://host/x", ["https://host/x", "http://host/x", "https://host/x"], True),
        ("https://host/x", ["https://host/x", "http://localhost/x"], True),
        ("https://host/x", ["https://host/x", "https://other/x"], False),
        ("http://localhost/x", ["http://localhost/x", "http://host/x"], True),
        ("http://localhost/x", ["http://localhost/x", "https://host/x"], False),
    ],
)
def test_every_step_of_a_redirect_is_looked_at(address: str, steps: list[str], refused: bool) -> None:
    *before, last = [SimpleNamespace(url=urlsplit_host(step)) for step in steps]
    stream = SimpleNamespace(r=SimpleNamespace(url=last.url, history=tuple(before)))
    session = transport.FilesystemSession(parse_address(address))
    with pytest.raises(RemoteError, match="redirects to http") if refused else nullcontext():
        session._check_where_it_led(stream, address)


def urlsplit_host(text: str) -> SimpleNamespace:
    parts = urlsplit(text)
    return SimpleNamespace(scheme=parts.scheme, host=parts.hostname)
