"""Compiled code on this machine: only what was written here, and is whole, is loaded."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dmq_fx.errors import BackendError
from dmq_fx.lowering import packages as packages_file
from dmq_fx.lowering.native import package_key
from dmq_fx.lowering.packages import NOTE, PackageCache, machine

KEY = "0" * 64


@pytest.fixture
def cache(tmp_path: Path) -> PackageCache:
    return PackageCache(tmp_path / "packages")


def write(text: str = "code") -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "code.pt2").write_text(text)
        (folder / "call.json").write_text("{}")

    return fill


def test_round_trip(cache: PackageCache) -> None:
    assert cache.get(KEY) is None and not cache.root.exists()
    folder = cache.put(KEY, write())
    assert folder == cache.get(KEY) == cache.root / KEY
    assert sorted(path.name for path in folder.iterdir()) == ["call.json", "code.pt2", NOTE]
    assert [path.name for path in cache.root.iterdir()] == [KEY]
    for path in (cache.root, folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def flip_a_byte(folder: Path) -> None:
    (folder / "code.pt2").write_bytes(b"codf")


def append(folder: Path) -> None:
    with (folder / "code.pt2").open("ab") as file:
        file.write(b"!")


def add_a_file(folder: Path) -> None:
    (folder / "more.so").write_text("code")


def add_a_folder(folder: Path) -> None:
    (folder / "more").mkdir()


def remove_a_file(folder: Path) -> None:
    (folder / "call.json").unlink()


def remove_the_note(folder: Path) -> None:
    (folder / NOTE).unlink()


def spoil_the_note(folder: Path) -> None:
    (folder / NOTE).write_text("{")


def empty_note(folder: Path) -> None:
    (folder / NOTE).write_text("[]")


def name_a_file_elsewhere(folder: Path) -> None:
    hashes = json.loads((folder / NOTE).read_text())["files"]
    (folder / "code.pt2").unlink()
    (folder / NOTE).write_text(json.dumps({"files": {**hashes, "../code.pt2": hashes["code.pt2"]}}))


DAMAGED = "compiled again: the compiled code is damaged"


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        append,
        add_a_file,
        add_a_folder,
        remove_a_file,
        remove_the_note,
        spoil_the_note,
        empty_note,
        name_a_file_elsewhere,
    ],
)
def test_damaged_code_is_removed_and_made_again(cache: PackageCache, damage: Callable[[Path], None]) -> None:
    folder = cache.put(KEY, write())
    damage(folder)
    with pytest.warns(UserWarning, match=DAMAGED) as caught:
        assert cache.get(KEY) is None
    assert str(folder) in str(caught[0].message)
    assert not folder.exists()
    assert cache.put(KEY, write("again")) == cache.get(KEY)
    assert (folder / "code.pt2").read_text() == "again"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners here")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o702])
def test_code_that_others_can_write_is_not_loaded(cache: PackageCache, mode: int) -> None:
    folder = cache.put(KEY, write())
    folder.chmod(mode)
    with pytest.warns(UserWarning, match="compiled again: others can write to the compiled code"):
        assert cache.get(KEY) is None
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners here")
def test_code_of_another_user_is_not_loaded(cache: PackageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(KEY, write())
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with pytest.warns(UserWarning, match="others can write to the compiled code"):
        assert cache.get(KEY) is None


def test_refused_code_that_cannot_be_removed_is_not_loaded_either(
    cache: PackageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's folder in a shared cache: it cannot be removed, and `put` must not hand it out."""
    folder = cache.put(KEY, write("not to be loaded"))
    add_a_file(folder)
    remove = shutil.rmtree
    monkeypatch.setattr(
        packages_file.shutil,
        "rmtree",
        lambda path, ignore_errors=False: None if Path(path) == folder else remove(path, ignore_errors),
    )
    with pytest.warns(UserWarning, match=DAMAGED):
        assert cache.get(KEY) is None
    try:
        found = cache.put(KEY, write("own"))
    except Exception as error:  # an error that says so would do as well
        assert str(folder) in str(error)
    else:
        assert (found / "code.pt2").read_text() == "own"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_nothing(cache: PackageCache, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        write()(folder)
        raise error

    with pytest.raises(error):
        cache.put(KEY, fail)
    assert list(cache.root.iterdir()) == []
    assert cache.get(KEY) is None


def test_a_package_appears_whole(cache: PackageCache) -> None:
    def look(folder: Path) -> None:
        write()(folder)
        assert cache.get(KEY) is None

    cache.put(KEY, look)
    assert cache.get(KEY) is not None


def test_what_another_process_put_there_first_stays(cache: PackageCache) -> None:
    def late(folder: Path) -> None:
        write("late")(folder)
        cache.put(KEY, write("first"))

    folder = cache.put(KEY, late)
    assert (folder / "code.pt2").read_text() == "first"
    assert [path.name for path in cache.root.iterdir()] == [KEY]


def test_what_another_process_puts_there_at_the_last_moment_stays(
    cache: PackageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def racing(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        cache.put(KEY, write("first"))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", racing)
    folder = cache.put(KEY, write("late"))
    assert (folder / "code.pt2").read_text() == "first"
    assert [path.name for path in cache.root.iterdir()] == [KEY]


def test_what_another_process_removes_meanwhile_is_not_there(
    cache: PackageCache, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    cache.put(KEY, write())
    problem = packages_file._problem

    def gone(folder: Path) -> str | None:
        shutil.rmtree(folder)
        return problem(folder)

    monkeypatch.setattr(packages_file, "_problem", gone)
    assert cache.get(KEY) is None
    assert not recwarn.list


def test_a_cache_that_cannot_be_written_to_is_read(cache: PackageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache.put(KEY, write())

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get(KEY) == folder


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_followed(cache: PackageCache, tmp_path: Path, there: bool) -> None:
    elsewhere = PackageCache(tmp_path / "elsewhere").put("1" * 64, write("elsewhere"))
    cache.put("2" * 64, write())
    (cache.root / KEY).symlink_to(elsewhere if there else tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="the compiled code is a link to another place"):
        assert cache.get(KEY) is None
    assert (cache.put(KEY, write("own")) / "code.pt2").read_text() == "own"
    assert (elsewhere / "code.pt2").read_text() == "elsewhere"


def test_a_place_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = PackageCache(tmp_path / "file" / "packages")
    assert cache.get(KEY) is None
    with pytest.raises(BackendError, match="native code cannot be kept") as caught:
        cache.put(KEY, write())
    assert "--no-compile" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners here")
def test_a_place_that_others_can_write_to_is_refused(cache: PackageCache) -> None:
    cache.put(KEY, write())
    cache.root.chmod(0o777)
    with pytest.warns(UserWarning, match="others can write"):
        assert cache.get(KEY) is None
    with pytest.raises(BackendError, match="others can write"):
        cache.put(KEY, write())


def test_keys_differ_by_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"artifact": "a", "backend": "x86_int8", "machine": machine(), "dtype": "torch.bfloat16"}
    keys = {PackageCache.key_of(**parts)}
    for name in parts:
        keys.add(PackageCache.key_of(**{**parts, name: "another"}))
        keys.add(PackageCache.key_of(**{key: value for key, value in parts.items() if key != name}))
    assert len(keys) == 9
    assert PackageCache.key_of(**dict(reversed(parts.items()))) in keys
    before = package_key("a", "x86_int8", dtype="float32")
    assert before == package_key("a", "x86_int8", dtype="float32")
    monkeypatch.setattr(packages_file, "FORMAT", packages_file.FORMAT + 1)
    assert package_key("a", "x86_int8", dtype="float32") != before


def test_machine_is_what_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert set(found["versions"]) >= {"dmq-fx", "torch"}
    assert ("vnni" in found["abilities"]) == torch.cpu._is_vnni_supported()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert machine() != found


@pytest.mark.parametrize("name", ["a.py", "a.cpp", "a.h", "a.md"])
def test_the_source_of_kernels_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(packages_file, "find_spec", lambda name: Package)
    before = packages_file.source_digest.__wrapped__()
    (tmp_path / name).write_text("code")
    assert (packages_file.source_digest.__wrapped__() != before) == (name != "a.md")


def test_default_place_is_the_users_cache() -> None:
    assert PackageCache().root.parts[-2:] == ("dmq", "packages")
    assert Path(os.environ["XDG_CACHE_HOME"]) in PackageCache().root.parents or os.name == "nt"


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path / "packages", limit_bytes=2500)
    keys = [digit * 64 for digit in "0123"]
    for age, key in enumerate(keys[:3]):
        folder = cache.put(key, write("c" * 600))
        os.utime(folder, (1000 + age, 1000 + age))
    assert cache.get(keys[0]) is not None  # used now, so that the second is the oldest
    cache.put(keys[3], write("c" * 600))
    assert {path.name for path in cache.root.iterdir()} == {keys[0], keys[2], keys[3]}


def test_a_package_larger_than_the_limit_stays(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path / "packages", limit_bytes=10)
    cache.put("0" * 64, write("c" * 600))
    folder = cache.put("1" * 64, write("c" * 600))
    assert list(cache.root.iterdir()) == [folder]


def test_old_leftovers_go(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path / "packages")
    for name, age in (("old", 2), ("new", 0)):
        left = cache.root / f".partial-{name}"
        left.mkdir(parents=True)
        when = time.time() - age * 24 * 3600
        os.utime(left, (when, when))
    cache.put(KEY, write())
    assert {path.name for path in cache.root.iterdir()} == {KEY, ".partial-new"}
