"""The folder of an artifact: written as a whole or not at all, and checked before anything in it is used.

Files go to a temporary sibling `.NAME.partial-<random>`, are synced, hashed, and listed in a manifest that is written
last; then the folder is renamed into place. A process that dies on the way leaves a partial folder, which nothing reads
and anyone may delete, and an existing artifact as it was. Only between the two renames of an overwrite is there
no artifact at the path; the old one is then whole in the sibling `.NAME.replaced-<random>`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmq_fx.artifact.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    is_file_name,
    make_manifest,
    manifest_to_json,
    parse_manifest,
)
from dmq_fx.errors import ArtifactError, InternalError, did_you_mean

FileSource = Callable[[Path], None] | bytes | str
"""What a file is made of: its bytes, its text (UTF-8), or a function that writes it at the path it is given."""

_HASH_CHUNK = 2**20
_DAMAGED = "the artifact is damaged: copy it again, or compile it again"


def write_artifact(
    path: Path | str, files: Mapping[str, FileSource], content: Mapping[str, Any], *, overwrite: bool
) -> Manifest:
    """Write `files` and a manifest with `content` (free JSON) as an artifact at `path`; missing parents are made.

    Raises ArtifactError if the target is taken (see `check_target`) or cannot be written, and lets pass what a
    function among `files` raises; in every such case the target is as it was before.
    """
    path = check_target(path, overwrite=overwrite)
    for name in files:
        if not is_file_name(name):
            raise InternalError(f"{name!r} cannot be the name of a file of an artifact")
    parents = [parent for parent in path.parents if not parent.exists()]
    partial = sibling(path, "partial")
    try:
        partial.mkdir(parents=True)
        manifest = _write_files(partial, files, content)
        _move_into_place(partial, path, overwrite=overwrite)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        _remove_empty(parents)
        if isinstance(error, OSError):
            raise ArtifactError(f"cannot write the artifact: {error}", where=str(path)) from error
        raise
    return manifest


def check_target(path: Path | str, *, overwrite: bool) -> Path:
    """The absolute path of a target that an artifact can be written to; worth asking before hours of work.

    Free is what does not exist, an empty folder, and, with `overwrite`, a folder with a valid manifest and no
    file beside those of the manifest: dmq deletes nothing that it did not write. Raises ArtifactError otherwise.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link
    with _os_errors("cannot look at the target", path):
        _check_target(path, overwrite)
    return path


def read_manifest(path: Path | str) -> Manifest:
    """The checked manifest of the artifact at `path`; its files are not looked at. Raises ArtifactError."""
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"no artifact at {path}", hint="check the path; `dmq compile` writes artifacts")
    if not path.is_dir():
        raise ArtifactError("an artifact is a folder, and this is a file", where=str(path))
    file = path / MANIFEST_NAME
    if not file.exists() and not file.is_symlink():
        raise ArtifactError(
            f"not a dmq artifact: the folder has no {MANIFEST_NAME}",
            where=str(path),
            hint="give the folder that `dmq compile` wrote",
        )
    with _os_errors("cannot read the manifest", file):
        _check_regular(file)
        text = file.read_bytes()
    return parse_manifest(text, where=str(file))


def verify_files(path: Path | str, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Check the files called `names` (default: all of them) against the manifest: sizes first, then SHA-256.

    Raises ArtifactError for a file that is missing, truncated, changed, or a symbolic link, and for a name that the
    manifest does not list. Files that the manifest does not list are not looked at.
    """
    path = Path(path)
    known = [record.name for record in manifest.files]
    records = []
    for name in known if names is None else names:
        record = manifest.record(name)
        if record is None:
            hint = did_you_mean(name, known) or f"it lists: {', '.join(known) or 'no files'}"
            raise ArtifactError(f"the manifest does not list {name!r}", where=str(path), hint=hint)
        if not is_file_name(name):
            raise ArtifactError(f"{name!r} cannot be the name of a file of an artifact", where=str(path))
        records.append(record)
    for record in records:
        file = path / record.name
        if not file.exists() and not file.is_symlink():
            raise ArtifactError("a file of the artifact is missing", where=str(file), hint=_DAMAGED)
        with _os_errors("cannot read the file", file):
            _check_regular(file)
            size = file.stat().st_size
        if size != record.size:
            what = "truncated" if size < record.size else "longer than when it was written"
            raise ArtifactError(
                f"the file is {what}: expected {record.size} bytes, got {size}", where=str(file), hint=_DAMAGED
            )
    for record in records:
        found = hash_file(path / record.name)
        if found.sha256 != record.sha256:
            raise ArtifactError(
                f"the file was changed after it was written: expected SHA-256 {record.sha256[:16]}…, "
                f"got {found.sha256[:16]}…",
                where=str(path / record.name),
                hint=_DAMAGED,
            )


def hash_file(path: Path) -> FileRecord:
    """Name, size and SHA-256 of a file, read in chunks. Raises ArtifactError if it cannot be read."""
    digest, size = hashlib.sha256(), 0
    with _os_errors("cannot read the file", path), path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(path.name, size, digest.hexdigest())


def sibling(path: Path, kind: str) -> Path:
    """A new hidden name beside `path`, on the same file system: `.NAME.KIND-<random>`."""
    return path.with_name(f".{path.name[:50]}.{kind}-{secrets.token_hex(8)}")


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the folder's list of names is on disk; Windows, which has no such call, does it by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_target(path: Path, overwrite: bool) -> None:
    if path.parent == path:
        raise ArtifactError("an artifact cannot be the root of a file system", where=str(path))
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        kind = "a symbolic link" if path.is_symlink() else "a file, not a folder"
        raise ArtifactError(f"cannot write an artifact here: it is {kind}", where=str(path), hint="take another path")
    if not path.exists():
        there = next(parent for parent in path.parents if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            what = "cannot be written to" if there.is_dir() else "is a file"
            message = f"cannot write an artifact here: {there} {what}"
            raise ArtifactError(message, where=str(path), hint="take another path")
        return
    if not any(path.iterdir()):
        return
    if not (path / MANIFEST_NAME).exists():
        raise ArtifactError(
            f"the folder is not empty and is not a dmq artifact (it has no {MANIFEST_NAME})",
            where=str(path),
            hint="take another path; dmq never deletes such a folder",
        )
    if not overwrite:
        raise ArtifactError(
            "there is an artifact here already", where=str(path), hint="take another path, or replace it with --force"
        )
    try:
        old = read_manifest(path)
    except ArtifactError as error:
        raise ArtifactError(
            f"the folder is not replaced, as it cannot be told for a dmq artifact: {error.message}",
            where=str(path),
            hint="take another path, or remove the folder yourself",
        ) from error
    extra = sorted({entry.name for entry in path.iterdir()} - {record.name for record in old.files} - {MANIFEST_NAME})
    if extra:
        raise ArtifactError(
            f"the artifact is not replaced, as its folder also holds other files: {', '.join(extra[:5])}",
            where=str(path),
            hint="move them away first, or take another path",
        )


def _write_files(folder: Path, files: Mapping[str, FileSource], content: Mapping[str, Any]) -> Manifest:
    records = []
    for name, source in files.items():
        file = folder / name
        if callable(source):
            source(file)
            if not file.is_file() or file.is_symlink():
                raise InternalError(f"the writer of {name!r} wrote no such file")
        else:
            file.write_bytes(source.encode("utf-8") if isinstance(source, str) else source)
        sync_file(file)
        records.append(hash_file(file))
    extra = {entry.name for entry in folder.iterdir()} - set(files)
    if extra:
        raise InternalError(f"files that nobody declared were written: {sorted(extra)}")
    manifest = make_manifest(records, content)
    (folder / MANIFEST_NAME).write_bytes(manifest_to_json(manifest).encode("ascii"))
    sync_file(folder / MANIFEST_NAME)
    sync_folder(folder)
    return manifest


def _move_into_place(partial: Path, path: Path, *, overwrite: bool) -> None:
    """Rename `partial` to `path`; what is there is moved aside first, put back on failure, removed on success."""
    check_target(path, overwrite=overwrite)  # again: writing may have taken hours
    aside = sibling(path, "replaced") if path.exists() else None
    try:
        if aside is not None:
            path.rename(aside)
        partial.rename(path)
    except BaseException:
        if aside is not None and aside.exists() and not path.exists():
            aside.rename(path)
        raise
    sync_folder(path.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)
        if aside.exists():
            warnings.warn(f"the replaced artifact could not be removed: delete {aside}", stacklevel=3)


@contextmanager
def _os_errors(what: str, where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{what}: {error}", where=str(where)) from error


def _check_regular(file: Path) -> None:
    """Links are not followed: an artifact that was copied here must not read files from elsewhere."""
    mode = file.lstat().st_mode
    if stat.S_ISLNK(mode):
        hint = "put the file itself in its place (from Hugging Face: download with `--local-dir`)"
        raise ArtifactError("a file of an artifact cannot be a symbolic link", where=str(file), hint=hint)
    if not stat.S_ISREG(mode):
        raise ArtifactError("this should be a file", where=str(file), hint="the folder is not a whole artifact")


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders that were made for an artifact that failed, innermost first, if nobody uses them."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
