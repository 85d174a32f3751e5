"""Model Explorer's web app on loopback, with one graph and its overlays loaded.

The package's own server asks a package registry and GitHub for newer versions, hands out any file of the machine by
its path, and its page takes fonts from the internet. This one serves the same web app and these data, and nothing else:
the page comes without the fonts' addresses, and a security policy keeps it on this host.
"""

from __future__ import annotations

import json
import mimetypes
import re
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from dmq_fx.errors import DmqError
from dmq_fx.inspection.graph import GRAPH
from dmq_fx.inspection.text import visible
from dmq_fx.inspection.viz import need

HOST = "127.0.0.1"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'"
)
_OUTSIDE = re.compile(r"<link[^>]*href=\"https?://[^>]*>|@font-face\s*\{[^}]*https?://[^}]*\}")
_IDLE = {
    "/api/v1/check_new_version": {"version": "", "runningVersion": "", "releaseUrl": "", "desktopAppUrl": ""},
    "/api/v1/get_extensions": [
        {
            "id": "builtin_json",
            "name": "JSON",
            "description": "",
            "source_repo": "",
            "fileExts": ["json"],
            "type": "adapter",
        }
    ],
    "/api/v1/notify_user_provided_model_path": {"status": "ok"},
}


class GraphServer(ThreadingHTTPServer):
    """Serves one graph. `url` opens it with its overlays."""

    daemon_threads = True

    def __init__(self, graph: Any, overlays: Mapping[str, Any], label: str, port: int = 0) -> None:
        config = need("model_explorer.config").ModelExplorerConfig()
        convert = need("model_explorer.utils").convert_adapter_response
        node_data = need("model_explorer.node_data_builder").ModelNodeData
        name = visible(label).replace("/", " ")
        config.graphs_list.append({"graphs": [graph]})
        config.model_sources.append({"url": f"graphs://{name}/0"})
        for overlay_name, overlay in overlays.items():
            config.add_node_data(overlay_name, node_data({GRAPH: overlay}))
        self.graphs = json.dumps(convert(config.get_model_explorer_graphs(0)))
        self.node_data = [config.get_node_data(place).to_json_string() for place in range(len(overlays))]
        self.app = Path(str(need("model_explorer").__file__)).parent / "web_app"
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise DmqError(f"cannot listen on port {port}: {error.strerror}", where="--port") from error
        self.url = f"http://{HOST}:{self.server_port}/?data={config.to_url_param_value()}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is no error; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: GraphServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """Static files of the web app, the graph, the overlays; a request for another host's name is refused."""
        if self.headers.get("Host") not in (
            f"{HOST}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self._answer(b"", status=HTTPStatus.FORBIDDEN)
            return
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path in _IDLE:
            self._answer(json.dumps(_IDLE[parts.path]).encode())
        elif parts.path == "/api/v1/load_graphs_json":
            self._answer(self.server.graphs.encode())
        elif parts.path == "/api/v1/load_node_data" and query.get("node_data_index", "").isdecimal():
            place = int(query["node_data_index"])
            if place < len(self.server.node_data):
                self._answer(json.dumps({"content": self.server.node_data[place]}).encode())
            else:
                self._answer(b"", status=HTTPStatus.NOT_FOUND)
        elif parts.path == "/apistream/server_director":
            self._answer(b"", status=HTTPStatus.NO_CONTENT)  # the page then stops asking
        elif parts.path == "/check_health":
            self._answer(b"model_explorer_ok", kind="text/plain")
        else:
            self._file(unquote(parts.path))

    def _file(self, path: str) -> None:
        file = self.server.app / (path.lstrip("/") or "index.html")
        try:
            file = file.resolve()
            body = file.read_bytes() if file.is_relative_to(self.server.app.resolve()) else None
        except (OSError, ValueError):  # no file, or no name that a file could have
            body = None
        if body is None:
            self._answer(b"", status=HTTPStatus.NOT_FOUND)
            return
        if file.name == "index.html":
            body = _OUTSIDE.sub("", body.decode("utf-8")).encode("utf-8")
        self._answer(body, kind=mimetypes.guess_type(file.name)[0] or "application/octet-stream")

    def _answer(self, body: bytes, *, kind: str = "application/json", status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's."""
