"""Recipes from a web server, a git repository and a folder; servers that fail, lie, and take their time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from dmq_fx.errors import DmqError, RecipeError, RemoteError
from dmq_fx.recipe import resolve
from dmq_fx.recipe.versions import parse_reference
from dmq_fx.sharing import transport
from dmq_fx.sharing.address import parse_address
from dmq_fx.sharing.cache import RecipeCache
from dmq_fx.sharing.catalog import catalog, search
from dmq_fx.sharing.git import GitSession
from dmq_fx.sharing.index import Entry, index_text
from dmq_fx.sharing.library import SharedLibrary
from dmq_fx.sharing.places import Places
from dmq_fx.sharing.remotes import Remote, add_remote

from .conftest import Repository, Server, git, publish, recipe_text

Make = Callable[..., SharedLibrary]
Handler = SimpleHTTPRequestHandler


def files(cache: RecipeCache) -> list[str]:
    return sorted(path.name for path in cache.root.rglob("*") if path.is_file() and path.suffix != ".json")


def pull(library: SharedLibrary, reference: str) -> Path:
    with library:
        return library.find(parse_reference(reference)).path


def failure(library: SharedLibrary, reference: str = "lab/w4") -> str:
    with pytest.raises(DmqError) as caught:
        pull(library, reference)
    return str(caught.value)


def test_a_recipe_from_a_web_server(
    server: Server, library: Make, cache: RecipeCache, pass_options: Mapping[str, type]
) -> None:
    texts = [recipe_text(version=version, bits=bits) for version, bits in (("1.0.0", 4), ("1.2.0", 5), ("2.0.0", 6))]
    texts.append(recipe_text("lab/child", "1.0.0", 3, "extends: lab/w4@^1\n"))
    entries = publish(server.folder, *texts)
    places = library(server.url)
    found = resolve("lab/child", pass_options=pass_options, library=places)
    weight = found.recipe.schemes["w"].weight
    assert weight and weight.bits == 3
    assert found.file and (found.file.name, found.file.origin) == ("lab/child", server.url)
    assert [(one.name, one.version, one.sha256) for one in found.parents] == [("lab/w4", "1.2.0", entries[1].sha256)]
    assert files(cache) == sorted(f"{entries[k].sha256}.yaml" for k in (1, 3))
    assert server.requests == ["/index.json", f"/{entries[3].path}", f"/{entries[1].path}"]
    again = resolve("lab/child@1.0.0", pass_options=pass_options, library=library())
    assert again.digest == found.digest
    assert server.asked("index.json") == 2 and len(server.requests) == 4  # files are kept, ranges are looked up anew


def test_an_exact_version_that_was_pulled_needs_no_server(server: Server, library: Make) -> None:
    publish(server.folder, recipe_text())
    pull(library(server.url), "lab/w4@1.0.0")
    asked = len(server.requests)
    pull(library(), "lab/w4@1.0.0")
    assert len(server.requests) == asked


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


def test_a_version_cannot_become_another_recipe(server: Server, library: Make) -> None:
    publish(server.folder, recipe_text())
    pull(library(server.url), "lab/w4")
    publish(server.folder, recipe_text(bits=5))
    said = failure(library(), "lab/w4@^1")
    assert "lab/w4@1.0.0 is another recipe than it was" in said


def test_a_recipe_that_is_not_who_its_entry_says(shelf: Path, library: Make, pass_options: Mapping[str, type]) -> None:
    (entry,) = publish(shelf, recipe_text("evil/w4"))
    (shelf / "index.json").write_bytes(index_text([Entry("lab/w4", "1.0.0", entry.sha256, entry.size)]))
    with pytest.raises(RecipeError, match=r"the file calls itself evil/w4@1\.0\.0, and the library lab/w4@1\.0\.0"):
        resolve("lab/w4", pass_options=pass_options, library=library(shelf))


@pytest.mark.parametrize("parent", ["../secret.yaml", "/etc/passwd.yaml", "./x", "x.yml"])
def test_a_pulled_recipe_reads_no_files(
    shelf: Path, library: Make, pass_options: Mapping[str, type], parent: str
) -> None:
    publish(shelf, recipe_text(more=f"extends: {parent}\n"))
    with pytest.raises(RecipeError) as caught:
        resolve("lab/w4", pass_options=pass_options, library=library(shelf))
    assert caught.value.message == f"a recipe of a remote reads no files, and names {parent!r}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x]\nb: *a\n", "is not part of the recipe language"),
        ("x: " + "[" * 50 + "]" * 50 + "\n", "nested more than 32 levels deep"),
        ("x: !!python/object/apply:os.system [ls]\n", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
    ],
)
def test_hostile_yaml(shelf: Path, library: Make, pass_options: Mapping[str, type], text: str, message: str) -> None:
    publish(shelf, recipe_text(more=text))
    with pytest.raises(RecipeError, match=message.replace("(", "\\(")):
        resolve("lab/w4", pass_options=pass_options, library=library(shelf))


def test_dmqs_own_recipes_come_first(
    shelf: Path, library: Make, places: Places, pass_options: Mapping[str, type]
) -> None:
    publish(shelf, recipe_text("ptq/w8a8", "1.0.0"), recipe_text("ptq/w8a8", "1.9.0"), recipe_text("ptq/w8a8", "2.0.0"))
    (places.library / "lab").mkdir(parents=True)
    (places.library / "lab" / "mine@1.0.0.yaml").write_text(recipe_text("lab/mine"))
    found = resolve("ptq/w8a8@^1", pass_options=pass_options, library=library(shelf))
    assert found.file and (found.file.version, found.file.origin) == ("1.0.0", None)
    found = resolve("ptq/w8a8@^2", pass_options=pass_options, library=library())
    assert found.file and (found.file.version, found.file.origin) == ("2.0.0", "remote lab")
    found = resolve("lab/mine", pass_options=pass_options, library=library())
    assert found.file and found.file.origin == "user library"


def test_names_that_are_nowhere(shelf: Path, library: Make) -> None:
    publish(shelf, recipe_text())
    assert failure(library(shelf), "lab/w5").startswith(
        "the library has no recipe 'lab/w5'\n  hint: did you mean 'lab/w4'"
    )
    assert failure(library(), "lab/w4@^2").endswith("has no version ^2 of 'lab/w4'\n  hint: it has: 1.0.0 (lab)")


def test_a_cache_that_was_changed_is_fetched_again(server: Server, library: Make, cache: RecipeCache) -> None:
    (entry,) = publish(server.folder, recipe_text())
    path = pull(library(server.url), "lab/w4")
    path.write_text(recipe_text(bits=7))
    assert pull(library(), "lab/w4").read_text() == recipe_text()
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert not pull(library(), "lab/w4").is_symlink()
    assert Path("/etc/hostname").read_bytes() != recipe_text().encode()
    assert server.asked(entry.path) == 3


def test_offline_never_leaves_the_machine(
    server: Server, library: Make, pass_options: Mapping[str, type], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server.folder, recipe_text(), recipe_text("lab/never"), recipe_text("lab/c", more="extends: lab/w4@^1\n"))
    pull(library(server.url), "lab/w4")
    pull(library(), "lab/c")

    def guard(*_: object, **__: object) -> Any:
        raise AssertionError("a socket was opened, or a program was started")

    monkeypatch.setattr(socket, "socket", guard)
    monkeypatch.setattr("subprocess.Popen", guard)
    asked = len(server.requests)
    offline = library(offline=True)
    found = resolve("lab/c@^1", pass_options=pass_options, library=offline)
    assert [one.name for one in found.parents] == ["lab/w4"]
    assert "offline, and lab/never@1.0.0 was not pulled" in failure(offline, "lab/never")
    rows, failures = offline.listed()
    assert not failures and {row.name for row in rows if row.place == "lab"} == {"lab/w4", "lab/never", "lab/c"}
    assert len(server.requests) == asked


def test_offline_without_an_index(library: Make) -> None:
    said = failure(library("https://example.org/recipes", offline=True))
    assert "remote lab: offline, and nothing was fetched from it yet" in said


PULLER = """
import sys
from pathlib import Path
from dmq_fx.recipe.versions import parse_reference
from dmq_fx.sharing.library import SharedLibrary
from dmq_fx.sharing.places import Places
root = Path(sys.argv[1])
library = SharedLibrary(Places(root / "recipes", root / "cache", root / "remotes.json", root / "trusted"))
print("ready", flush=True)
sys.stdin.readline()
for number in range(6):
    sys.stdout.write(library.find(parse_reference(f"lab/w{number}")).path.read_text())
"""


def test_processes_pull_at_once(server: Server, places: Places, cache: RecipeCache) -> None:
    texts = [recipe_text(f"lab/w{k}", bits=4) for k in range(6)]
    entries = publish(server.folder, *texts)
    add_remote(places.remotes, Remote("lab", parse_address(server.url)))
    command = [sys.executable, "-c", PULLER, str(places.library.parent)]
    pullers = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(2)]
    for puller in pullers:
        assert puller.stdout and puller.stdout.readline() == "ready\n"
    for puller in pullers:  # both begin now
        assert puller.stdin
        puller.stdin.write("\n")
        puller.stdin.flush()
    assert [puller.communicate(timeout=60)[0] for puller in pullers] == ["".join(texts)] * 2
    assert files(cache) == sorted(f"{entry.sha256}.yaml" for entry in entries)


def test_a_pull_that_is_interrupted(
    server: Server, library: Make, cache: RecipeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server.folder, recipe_text())
    places = library(server.url)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    places.remotes[0]._index = publish(server.folder, recipe_text())[0:1]  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        pull(places, "lab/w4")
    assert files(cache) == []


def test_a_thousand_recipes_are_searched_by_one_read(server: Server, library: Make) -> None:
    texts = [recipe_text(f"lab/w{k}", bits=2 + k % 7) for k in range(1000)]
    publish(server.folder, *texts)
    places = library(server.url)
    rows, failures = places.listed()
    started = time.process_time()
    found = search(catalog(rows), ["LAB/", "7-bit"])
    assert time.process_time() - started < 1.0
    assert not failures and len(found) == 143
    assert server.requests == ["/index.json"]  # no recipe was read


def test_git_at_a_tag_and_at_a_commit(
    repository: Repository, library: Make, pass_options: Mapping[str, type], places: Places
) -> None:
    publish(repository.clone / "shared", recipe_text(bits=4))
    first = repository.commit("v1")
    publish(repository.clone / "shared", recipe_text(bits=4), recipe_text(version="1.1.0", bits=5))
    repository.commit("v2")
    add_remote(places.remotes, Remote("tag", parse_address(repository.address("v2") + "#subdirectory=shared")))
    with library() as both:
        found = resolve("lab/w4@^1", pass_options=pass_options, library=both)
    assert found.file and (found.file.version, found.file.origin) == ("1.1.0", "remote tag")
    address = parse_address(repository.address(first) + "#subdirectory=shared")
    session = GitSession(address)
    assert len(json.loads(session.read("index.json", 10_000))["recipes"]) == 1
    assert session.commit == first
    with pytest.raises(FileNotFoundError):
        session.read("recipes", 10_000)
    with pytest.raises(RemoteError, match="larger than the 10 bytes"):
        session.read("index.json", 10)
    folder = session._folder
    assert folder is not None and not (folder / "shared").exists()  # nothing is checked out
    session.close()
    assert not folder.exists()


def test_git_runs_nothing_of_the_repository(repository: Repository, tmp_path: Path) -> None:
    publish(repository.clone, recipe_text())
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (repository.clone / ".gitattributes").write_text("* filter=evil\n")
    (repository.clone / "link").symlink_to(secret)
    repository.commit("v1")
    git(repository.bare, "config", "filter.evil.smudge", f"touch {tmp_path}/ran")
    session = GitSession(parse_address(repository.address("v1")))
    assert b"recipes" in session.read("index.json", 10_000)
    assert session.read("link", 1000) == str(secret).encode()  # the text of the link, not what it leads to
    assert not (tmp_path / "ran").exists()
    session.close()


def test_git_that_fails(repository: Repository, library: Make, tmp_path: Path) -> None:
    publish(repository.clone, recipe_text())
    repository.commit("v1")
    said = failure(library(repository.address("v9")))
    assert "git fetch failed: fatal: couldn't find remote ref v9" in said
    with pytest.raises(RemoteError, match="git fetch failed"):
        GitSession(parse_address(f"git+file://{tmp_path}/none.git@v1")).read("index.json", 10)
    with pytest.raises(RemoteError, match="the repository is larger than 1 bytes"):
        GitSession(parse_address(repository.address("v1")), bytes_limit=1).read("index.json", 10)
    with pytest.raises(RemoteError, match="git did not end within 0 s"):
        GitSession(parse_address(repository.address("v1")), seconds=0.0).read("index.json", 10)


@pytest.mark.parametrize("row", ['{"name": "a", "address": 5}', "5", '{"name": "a"}'])
def test_a_damaged_list_of_remotes(places: Places, library: Make, row: str) -> None:
    places.remotes.parent.mkdir(parents=True)
    places.remotes.write_text(f'{{"format": 1, "remotes": [{row}]}}')
    with pytest.raises(RemoteError, match="the list of remotes is damaged"):
        library()


def test_a_list_of_remotes_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RemoteError, match="cannot write the file"):
        add_remote(tmp_path / "file" / "remotes.json", Remote("a", parse_address("/x")))


def test_offline_a_remote_that_was_never_read_is_passed_over(places: Places, shelf: Path, library: Make) -> None:
    publish(shelf, recipe_text())
    add_remote(places.remotes, Remote("never", parse_address("https://127.0.0.1:9/none")))
    assert pull(library(shelf, offline=True), "lab/w4").is_file()
    assert "nothing was fetched from it yet" in failure(library(offline=True), "lab/none")


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
