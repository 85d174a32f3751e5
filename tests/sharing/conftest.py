"""A remote as a folder, a web server that can misbehave, a bare git repository, keys; all on this machine."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dmq_fx.errors import DmqError
from dmq_fx.pass_api import PASSES
from dmq_fx.recipe.versions import parse_reference
from dmq_fx.sharing.address import parse_address
from dmq_fx.sharing.cache import RecipeCache, sha256_of
from dmq_fx.sharing.index import Entry, index_text
from dmq_fx.sharing.library import SharedLibrary
from dmq_fx.sharing.places import Places
from dmq_fx.sharing.remotes import Remote, add_remote

Make = Callable[..., SharedLibrary]

RULES = "rules: [{match: {}, scheme: w}]\n"


def recipe_text(name: str = "lab/w4", version: str = "1.0.0", bits: int = 4, more: str = RULES) -> str:
    return (
        f"dmq: 2\nname: {name}\nversion: {version}\nsummary: {bits}-bit weights of the lab\n"
        f"schemes: {{w: {{weight: {{bits: {bits}}}}}}}\n{more}"
    )


def publish(folder: Path, *texts: str, signed: Mapping[str, bytes] | None = None) -> list[Entry]:
    """Write a remote by hand: what any other tool would write."""
    entries = []
    for text in texts:
        data = text.encode()
        lines = dict(line.split(": ", 1) for line in text.splitlines()[:4])
        signature = (signed or {}).get(text)
        entry = Entry(lines["name"], lines["version"], sha256_of(data), len(data), lines["summary"], bool(signature))
        path = folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if signature:
            path.with_name(path.name + ".sig").write_bytes(signature)
        entries.append(entry)
    (folder / "index.json").write_bytes(index_text(entries))
    return entries


@pytest.fixture(scope="session")
def pass_options() -> Mapping[str, type]:
    return {name: entry.Options for name, entry in PASSES}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    home = tmp_path / "home"
    return Places(home / "recipes", home / "cache", home / "remotes.json", home / "trusted_signers")


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The folder of a remote, empty."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(places: Places) -> RecipeCache:
    return RecipeCache(places.cache)


@pytest.fixture
def library(places: Places) -> Callable[..., SharedLibrary]:
    """A library that asks the remote at an address, called `lab`."""

    def make(address: str | Path | None = None, **options: object) -> SharedLibrary:
        if address is not None:
            add_remote(places.remotes, Remote("lab", parse_address(str(address))))
        return SharedLibrary(places, **options)  # type: ignore[arg-type]

    return make


@dataclass
class Server:
    """A web server of a folder. requests: paths asked for; faults: what goes wrong with a path, by its end."""

    folder: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)
    faults: dict[str, Callable[[SimpleHTTPRequestHandler], bool]] = field(default_factory=dict)

    def asked(self, ending: str) -> int:
        return sum(path.endswith(ending) for path in self.requests)


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, server_state: Server, *arguments: object) -> None:
        self.state = server_state
        super().__init__(*arguments, directory=str(server_state.folder))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.state.requests.append(self.path)
        for ending, fault in self.state.faults.items():
            if self.path.endswith(ending) and fault(self):
                return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    state = Server(shelf)
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, state))  # type: ignore[arg-type]
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    yield state
    http.shutdown()
    http.server_close()


def git(folder: Path, *arguments: str) -> str:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
        "GIT_AUTHOR_NAME": "lab",
        "GIT_AUTHOR_EMAIL": "lab@example.org",
        "GIT_COMMITTER_NAME": "lab",
        "GIT_COMMITTER_EMAIL": "lab@example.org",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@dataclass(frozen=True)
class Repository:
    """A bare repository and a clone of it."""

    bare: Path
    clone: Path

    def address(self, revision: str) -> str:
        return f"git+file://{self.bare}@{revision}"

    def commit(self, tag: str | None = None) -> str:
        git(self.clone, "add", "-A")
        git(self.clone, "commit", "-q", "--allow-empty", "-m", "recipes")
        if tag:
            git(self.clone, "tag", tag)
        git(self.clone, "push", "-q", "--tags", "origin", "HEAD:refs/heads/main")
        return git(self.clone, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    bare, clone = tmp_path / "lab.git", tmp_path / "clone"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    git(tmp_path, "clone", "-q", str(bare), str(clone))
    return Repository(bare, clone)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two keys of OpenSSH without passphrases: of the lab, and of somebody else."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("lab", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(command, check=True)
    return {name: folder / name for name in ("lab", "other")}


@pytest.fixture
def trusted(places: Places, keys: dict[str, Path]) -> Path:
    """A file of trusted keys that holds the lab's."""
    kind, key = keys["lab"].with_suffix(".pub").read_text().split()[:2]
    places.trusted.parent.mkdir(parents=True, exist_ok=True)
    places.trusted.write_text(f"lab@example.org {kind} {key}\n")
    return places.trusted


def files(cache: RecipeCache) -> list[str]:
    """Names of the recipes that are kept."""
    return sorted(path.name for path in cache.root.rglob("*") if path.is_file() and path.suffix != ".json")


def pull(library: SharedLibrary, reference: str) -> Path:
    with library:
        return library.find(parse_reference(reference)).path


def failure(library: SharedLibrary, reference: str = "lab/w4") -> str:
    with pytest.raises(DmqError) as caught:
        pull(library, reference)
    return str(caught.value)
