"""Encoded images out of a folder or an archive, one at a time and in memory: nothing is unpacked to disk."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dmq_fx.errors import DmqError, did_you_mean

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LARGEST = 2**28
"""Bytes of one encoded image, at most: a member that claims more is damaged or hostile."""

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_BROKEN = (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error)
_FOLDERS_NAMED = 200
_HINT = "a reference is a folder or archive of images, or statistics (.safetensors)"


@dataclass(frozen=True)
class _Entry:
    """A file inside of a source; `read` is called before the next entry is asked for, or never."""

    name: str
    size: int
    read: Callable[[], bytes]


def image_files(source: str | Path, subset: str | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield (path inside, encoded image) for each image of a folder, with all below it, or of a zip or tar archive.

    subset: only of folders of this name (`test`), or of this path (`mnist/test`). Folders and zip archives are read
    in the order of their names, tar archives in their own. Hidden files are left out. Raises DmqError where the
    source is missing, no archive, or damaged, and where it has no image (of the subset).
    """
    source = Path(source)
    kind, entries = _open(source)
    wanted = PurePosixPath(subset).parts if subset else ()
    folders: set[str] = set()
    found = 0
    try:
        for entry in entries:
            parents = _folders_of_image(entry.name)
            if parents is None:
                continue
            if len(folders) < _FOLDERS_NAMED:
                folders.update(parents or ["."])
            if wanted and not _contains(parents, wanted):
                continue
            if entry.size > LARGEST:
                message = f"an image has {entry.size} bytes, more than the {LARGEST} that are read"
                raise DmqError(message, where=f"{source}: {entry.name}")
            data = entry.read()
            found += 1
            yield entry.name, data
    except _BROKEN as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DmqError(f"the {kind} cannot be read: {reason}", where=str(source), hint="copy it again") from error
    if not folders:
        message = f"there are no images ({', '.join(SUFFIXES)}) in the {kind}"
        raise DmqError(message, where=str(source), hint=_HINT)
    if not found:
        hint = did_you_mean(str(subset), folders) or f"folders that hold images: {', '.join(sorted(folders)[:10])}"
        raise DmqError(f"there are no images of a subset {subset!r}", where=str(source), hint=hint)


def _open(source: Path) -> tuple[str, Iterator[_Entry]]:
    """What the source is, and its entries, which are read as they are asked for."""
    if source.is_dir():
        return "folder", _folder(source)
    if not source.exists():
        raise DmqError("there is no such file or folder", where=str(source), hint=_HINT)
    try:
        with source.open("rb") as file:
            magic = file.read(4)
        if magic in _ZIP_MAGIC:
            return "zip archive", _zip(source)
        if tarfile.is_tarfile(source):
            return "tar archive", _tar(source)
    except _BROKEN as error:
        raise DmqError(f"cannot be read: {error}", where=str(source)) from error
    raise DmqError("neither a folder nor a zip or tar archive", where=str(source), hint=_HINT)


def _folder(source: Path) -> Iterator[_Entry]:
    files = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file()}
    for name in sorted(files):
        yield _Entry(name, files[name].stat().st_size, files[name].read_bytes)


def _zip(source: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(source) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if not info.is_dir():
                yield _Entry(info.filename, info.file_size, lambda info=info: archive.read(info))


def _tar(source: Path) -> Iterator[_Entry]:
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isreg():  # no links, which could name files elsewhere
                yield _Entry(member.name, member.size, lambda member=member: _read_member(archive, member))


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = archive.extractfile(member)
    return handle.read() if handle is not None else b""


def _folders_of_image(name: str) -> list[str] | None:
    """The folders that an image lies in; None for what is no image, or hidden (`._1.png`, `__MACOSX`)."""
    parts = [part for part in PurePosixPath(name).parts if part not in (".", "..", "/")]
    if not parts or any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    return parts[:-1] if parts[-1].lower().endswith(SUFFIXES) else None


def _contains(parents: list[str], wanted: tuple[str, ...]) -> bool:
    """Whether the folders `wanted` follow each other in `parents`."""
    return any(tuple(parents[at : at + len(wanted)]) == wanted for at in range(len(parents)))
