"""Publishing recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dmq_fx.errors import RecipeError, RemoteError, SignatureError
from dmq_fx.recipe import resolve
from dmq_fx.sharing import signing
from dmq_fx.sharing.address import parse_address
from dmq_fx.sharing.cache import RecipeCache, write_atomically
from dmq_fx.sharing.index import parse_index
from dmq_fx.sharing.library import SharedLibrary
from dmq_fx.sharing.places import Places
from dmq_fx.sharing.push import Pushed, push
from dmq_fx.sharing.remotes import Remote, add_remote

from .conftest import recipe_text

Push = Callable[..., Pushed]


@pytest.fixture
def pushes(shelf: Path, places: Places, cache: RecipeCache, pass_options: Mapping[str, type], tmp_path: Path) -> Push:
    add_remote(places.remotes, Remote("lab", parse_address(str(shelf))))

    def run(text: str, address: str | Path = shelf) -> Pushed:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        remote = Remote("lab", parse_address(str(address)))
        return push(path, remote, library=SharedLibrary(places), pass_options=pass_options, cache=cache)

    return run


def test_what_is_pushed_is_pulled(pushes: Push, shelf: Path, places: Places, pass_options: Mapping[str, type]) -> None:
    done = pushes(recipe_text())
    assert done.new and done.entry.reference == "lab/w4@1.0.0" and done.entry.summary == "4-bit weights of the lab"
    pushes(recipe_text("lab/child", more="extends: lab/w4@^1\n"))
    assert not pushes(recipe_text()).new
    found = resolve("lab/child", pass_options=pass_options, library=SharedLibrary(places))
    assert [one.name for one in found.parents] == ["lab/w4"]
    names = sorted(str(path.relative_to(shelf)) for path in shelf.rglob("*") if path.is_file())
    entries = parse_index((shelf / "index.json").read_bytes(), "x")
    assert names == sorted(["index.json", *(entry.path for entry in entries)])


def test_a_version_never_changes(pushes: Push, shelf: Path) -> None:
    pushes(recipe_text())
    before = {path: path.read_bytes() for path in shelf.rglob("*") if path.is_file()}
    with pytest.raises(RemoteError) as caught:
        pushes(recipe_text(bits=5))
    assert "lab/w4@1.0.0 is there already, with other content" in str(caught.value)
    assert caught.value.hint == "a version never changes: raise `version:` and push that"
    assert {path: path.read_bytes() for path in shelf.rglob("*") if path.is_file()} == before
    assert pushes(recipe_text(version="1.0.1", bits=5)).new


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (recipe_text(more="extends: ./base.yaml\n"), "a recipe that is shared extends by name"),
        (recipe_text(more="extends: lab/none@^1\n"), "the library has no recipe 'lab/none'"),
        (recipe_text().replace("version: 1.0.0\n", ""), "a recipe that is shared says its version"),
        (recipe_text(bits=40), "bits must be between 2 and 8, got 40"),
    ],
)
def test_what_is_not_pushed(pushes: Push, shelf: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        pushes(text)
    assert message in str(caught.value)
    assert list(shelf.iterdir()) == []


@pytest.mark.parametrize("address", ["https://example.org/r", "git+https://example.org/r@v1", "github://lab:r@v1"])
def test_remotes_that_are_only_read(pushes: Push, address: str) -> None:
    with pytest.raises(RemoteError, match=r"this remote can only be read\n  hint: push to a folder of a clone"):
        pushes(recipe_text(), address)


def test_a_damaged_index_is_not_written_over(pushes: Push, shelf: Path) -> None:
    (shelf / "index.json").write_text("{")
    with pytest.raises(RemoteError, match="the index is not JSON"):
        pushes(recipe_text())
    assert (shelf / "index.json").read_text() == "{"


def test_a_signature_goes_with_the_file(
    pushes: Push,
    shelf: Path,
    tmp_path: Path,
    keys: dict[str, Path],
    trusted: Path,
    places: Places,
    pass_options: Mapping[str, type],
) -> None:
    pushes(recipe_text())
    (tmp_path / "mine.yaml").write_text(recipe_text())
    signing.sign(tmp_path / "mine.yaml", keys["lab"])
    assert pushes(recipe_text()).entry.signed  # signed later: the same content
    resolve("lab/w4", pass_options=pass_options, library=SharedLibrary(places, require_signed=True))
    with pytest.raises(SignatureError, match="the signature is not one of this file"):
        pushes(recipe_text(version="2.0.0"))
    assert len(parse_index((shelf / "index.json").read_bytes(), "x")) == 1


PUSHER = """
import sys
from pathlib import Path
from dmq_fx.sharing.address import parse_address
from dmq_fx.sharing.cache import RecipeCache
from dmq_fx.sharing.library import SharedLibrary
from dmq_fx.sharing.places import Places
from dmq_fx.sharing.push import push
from dmq_fx.sharing.remotes import Remote
root, path, shelf = map(Path, sys.argv[1:])
places = Places(root / "recipes", root / "cache", root / "remotes.json", root / "trusted")
print("ready", flush=True)
sys.stdin.readline()
remote = Remote("lab", parse_address(str(shelf)))
done = push(path, remote, library=SharedLibrary(places), pass_options={}, cache=RecipeCache(places.cache))
print(done.entry.reference)
"""


def test_processes_push_at_once(shelf: Path, places: Places, tmp_path: Path) -> None:
    pushers = []
    for number in range(3):
        path = tmp_path / f"{number}.yaml"
        path.write_text(recipe_text(f"lab/w{number}"))
        command = [sys.executable, "-c", PUSHER, str(places.library.parent), str(path), str(shelf)]
        pushers.append(subprocess.Popen(command, stdin=-1, stdout=-1, text=True))
    for pusher in pushers:
        assert pusher.stdout and pusher.stdout.readline() == "ready\n"
    for pusher in pushers:
        assert pusher.stdin
        pusher.stdin.write("\n")
        pusher.stdin.flush()
    said = [pusher.communicate(timeout=60)[0] for pusher in pushers]
    assert said == [f"lab/w{k}@1.0.0\n" for k in range(3)]
    assert len(parse_index((shelf / "index.json").read_bytes(), "x")) == 3


def test_others_can_read_what_is_pushed_and_only_the_user_the_cache(pushes: Push, shelf: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        done = pushes(recipe_text())
        kept = write_atomically(tmp_path / "private" / "x", b"x")
    finally:
        os.umask(before)
    modes = [(shelf / name).stat().st_mode & 0o777 for name in ("index.json", "recipes", done.entry.path)]
    assert modes == [0o644, 0o755, 0o644]
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
