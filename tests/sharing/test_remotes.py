"""Recipes from a web server and a folder: what is pulled, kept, refused and searched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dmq_fx.errors import RecipeError, RemoteError
from dmq_fx.recipe import resolve
from dmq_fx.sharing.address import parse_address
from dmq_fx.sharing.cache import RecipeCache
from dmq_fx.sharing.catalog import catalog, search
from dmq_fx.sharing.index import Entry, index_text
from dmq_fx.sharing.places import Places
from dmq_fx.sharing.remotes import Remote, add_remote

from .conftest import Make, Server, failure, files, publish, pull, recipe_text


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
