import os
from pathlib import Path

import pytest

from dmq_fx.artifact import container
from dmq_fx.artifact.container import check_target, read_manifest, verify_files, write_artifact
from dmq_fx.artifact.manifest import FileRecord, Manifest, manifest_to_json
from dmq_fx.errors import ArtifactError, InternalError

FILES = {
    "model.safetensors": lambda path: path.write_bytes(b"x" * 3_000_000),
    "config.json": '{"é": 1}\n',
    "data": b"\x00\x01",
}
CONTENT = {"recipe": "dmq/w4a8"}


@pytest.fixture
def artifact(tmp_path):
    write_artifact(tmp_path / "out", FILES, CONTENT, overwrite=False)
    return tmp_path / "out"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder: bytes of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(call, message: str, hint: str = "") -> ArtifactError:
    with pytest.raises(ArtifactError) as error:
        call()
    assert message in error.value.message
    assert hint in (error.value.hint or "")
    return error.value


def test_written_files_are_read_back(artifact):
    manifest = read_manifest(artifact)
    verify_files(artifact, manifest)
    assert manifest.content == CONTENT
    assert [(record.name, record.size) for record in manifest.files] == [
        ("config.json", 10),
        ("data", 2),
        ("model.safetensors", 3_000_000),
    ]
    assert (artifact / "config.json").read_bytes() == '{"é": 1}\n'.encode()
    assert names(artifact.parent) == ["out"]


def test_write_returns_the_manifest_that_is_read_and_missing_parents_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "out"
    assert write_artifact(path, FILES, CONTENT, overwrite=False) == read_manifest(path)


def test_same_content_same_digest(tmp_path):
    one = write_artifact(tmp_path / "one", FILES, CONTENT, overwrite=False)
    two = write_artifact(tmp_path / "two", dict(reversed(FILES.items())), CONTENT, overwrite=False)
    assert one == two
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()
    assert write_artifact(tmp_path / "three", FILES, {"recipe": "x"}, overwrite=False).digest != one.digest


class Crash(BaseException):
    """Stands for a process that is stopped; not an Exception."""


@pytest.mark.parametrize("error", [ValueError, Crash])
def test_a_writer_that_fails_leaves_nothing(tmp_path, error):
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise error("no")

    with pytest.raises(error):
        write_artifact(tmp_path / "deep" / "out", {"config.json": "{}", "model": fail}, {}, overwrite=False)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("error", [ValueError, Crash])
def test_a_writer_that_fails_leaves_the_old_artifact(artifact, error):
    def fail(path: Path) -> None:
        raise error("no")

    before = tree(artifact.parent)
    with pytest.raises(error):
        write_artifact(artifact, {"model": fail}, {}, overwrite=True)
    assert tree(artifact.parent) == before


def test_a_full_disk_is_an_artifact_error(tmp_path):
    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    refused(
        lambda: write_artifact(tmp_path / "out", {"model": fail}, {}, overwrite=False),
        "cannot write the artifact: [Errno 28] No space left on device",
    )
    assert tree(tmp_path) == {}


def test_a_process_that_dies_before_the_rename_leaves_no_artifact(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "_move_into_place", lambda *_, **__: (_ for _ in ()).throw(Crash()))
    monkeypatch.setattr(container.shutil, "rmtree", lambda *_, **__: None)  # a dead process cleans nothing up
    with pytest.raises(Crash):
        write_artifact(tmp_path / "out", FILES, CONTENT, overwrite=False)
    monkeypatch.undo()
    (partial,) = names(tmp_path)
    assert partial.startswith(".out.partial-")
    refused(lambda: read_manifest(tmp_path / "out"), "no artifact at")
    write_artifact(tmp_path / "out", FILES, CONTENT, overwrite=False)  # and it is in nobody's way
    verify_files(tmp_path / "out", read_manifest(tmp_path / "out"))


def test_a_rename_that_fails_puts_the_old_artifact_back(artifact, monkeypatch):
    before, rename = tree(artifact.parent), Path.rename

    def fail_into_place(self, target):
        if ".partial-" in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    refused(lambda: write_artifact(artifact, {"a": b"new"}, {}, overwrite=True), "cannot write the artifact")
    assert tree(artifact.parent) == before


def test_an_artifact_is_replaced_only_when_asked(artifact):
    before = tree(artifact.parent)
    error = refused(
        lambda: write_artifact(artifact, {"a": b"new"}, {}, overwrite=False), "there is an artifact here", "--force"
    )
    assert error.where == str(artifact)
    assert tree(artifact.parent) == before
    write_artifact(artifact, {"a": b"new"}, {}, overwrite=True)
    assert sorted(tree(artifact.parent)) == ["out", "out/a", "out/manifest.json"]


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "out").mkdir()
    write_artifact(tmp_path / "out", {"a": b"1"}, {}, overwrite=False)
    assert sorted(tree(tmp_path)) == ["out", "out/a", "out/manifest.json"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: (path.mkdir(), (path / "thesis.tex").write_text("x")), "is not a dmq artifact"),
        (lambda path: path.write_text("x"), "it is a file, not a folder"),
        (lambda path: path.symlink_to(path.parent), "it is a symbolic link"),
        (lambda path: path.symlink_to("nowhere"), "it is a symbolic link"),
    ],
)
def test_what_is_not_an_artifact_is_never_deleted(tmp_path, overwrite, make, message):
    make(tmp_path / "out")
    before = sorted(tree(tmp_path))
    refused(lambda: write_artifact(tmp_path / "out", FILES, CONTENT, overwrite=overwrite), message, "another path")
    assert sorted(tree(tmp_path)) == before


def test_a_foreign_manifest_is_never_deleted(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text('{"manifest_version": 3, "name": "a browser extension"}')
    refused(lambda: write_artifact(tmp_path / "out", FILES, CONTENT, overwrite=True), "cannot be told for", "yourself")
    assert sorted(tree(tmp_path)) == ["out", "out/manifest.json"]


def test_files_of_the_user_inside_an_artifact_are_never_deleted(artifact):
    (artifact / "notes.txt").write_text("mine")
    refused(lambda: check_target(artifact, overwrite=True), "also holds other files: notes.txt", "move them away")
    verify_files(artifact, read_manifest(artifact))  # but they do not disturb


def test_a_target_that_appears_while_writing_is_kept(tmp_path):
    def slow(path: Path) -> None:
        path.write_bytes(b"x")
        write_artifact(tmp_path / "out", {"a": b"first"}, {}, overwrite=False)

    refused(lambda: write_artifact(tmp_path / "out", {"a": slow}, {}, overwrite=False), "there is an artifact here")
    assert (tmp_path / "out/a").read_bytes() == b"first"
    assert names(tmp_path) == ["out"]


def test_writers_keep_to_what_they_declare(tmp_path):
    with pytest.raises(InternalError, match="the writer of 'a' wrote no such file"):
        write_artifact(tmp_path / "out", {"a": lambda path: None}, {}, overwrite=False)
    with pytest.raises(InternalError, match=r"nobody declared were written: \['b'\]"):
        two = lambda path: (path.write_text("a"), path.with_name("b").write_text("b"))  # noqa: E731
        write_artifact(tmp_path / "out", {"a": two}, {}, overwrite=False)
    for name in ("../a", "manifest.json", "a/b"):
        with pytest.raises(InternalError, match="cannot be the name of a file"):
            write_artifact(tmp_path / "out", {name: b""}, {}, overwrite=False)
    assert tree(tmp_path) == {}


def test_reading_what_is_not_an_artifact(tmp_path):
    refused(lambda: read_manifest(tmp_path / "none"), f"no artifact at {tmp_path / 'none'}", "check the path")
    (tmp_path / "file").write_text("x")
    refused(lambda: read_manifest(tmp_path / "file"), "an artifact is a folder")
    refused(lambda: read_manifest(tmp_path), "not a dmq artifact: the folder has no manifest.json", "dmq compile")
    (tmp_path / "manifest.json").mkdir()
    refused(lambda: read_manifest(tmp_path), "this should be a file")


def test_a_changed_manifest_is_noticed(artifact):
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace("w4a8", "w8a8"))
    error = refused(lambda: read_manifest(artifact), "manifest.json was changed after it was written")
    assert error.where == str(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "a file of the artifact is missing"),
        (lambda file: file.write_bytes(b"x"), "the file is truncated: expected 3000000 bytes, got 1"),
        (lambda file: file.write_bytes(b"x" * 3_000_001), "longer than when it was written: expected 3000000 bytes"),
        (lambda file: file.write_bytes(b"x" * 2_999_999 + b"y"), "changed after it was written: expected SHA-256"),
        (lambda file: (file.unlink(), file.mkdir()), "this should be a file"),
        (lambda file: (file.rename(file.with_name("real")), file.symlink_to("real")), "cannot be a symbolic link"),
        (lambda file: (file.unlink(), file.symlink_to("nowhere")), "cannot be a symbolic link"),
    ],
)
def test_damage_is_named(artifact, damage, message):
    damage(artifact / "model.safetensors")
    manifest = read_manifest(artifact)
    error = refused(lambda: verify_files(artifact, manifest), message)
    assert error.where == str(artifact / "model.safetensors")
    assert error.hint
    verify_files(artifact, manifest, ["config.json", "data"])


def test_a_manifest_that_is_a_link_is_refused(artifact):
    (artifact / "manifest.json").rename(artifact / "real")
    (artifact / "manifest.json").symlink_to("real")
    refused(lambda: read_manifest(artifact), "cannot be a symbolic link")


def test_names_outside_the_manifest(artifact):
    manifest = read_manifest(artifact)
    refused(lambda: verify_files(artifact, manifest, ["confg.json"]), "does not list 'confg.json'", "'config.json'")
    forged = Manifest(1, "x", (FileRecord("../secret", 1, "0" * 64),), {}, "")
    refused(lambda: verify_files(artifact, forged), "'../secret' cannot be the name of a file")
    (artifact / "manifest.json").write_text(manifest_to_json(forged))
    refused(lambda: read_manifest(artifact), "'../secret' cannot be the name of a file")


def test_a_place_that_cannot_be_written_to_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file is a file"):
        check_target(tmp_path / "file" / "deep" / "out", overwrite=False)
    assert check_target(tmp_path / "new" / "out", overwrite=False) == tmp_path / "new" / "out"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match=f"{tmp_path} cannot be written to"):
        check_target(tmp_path / "new" / "out", overwrite=False)
