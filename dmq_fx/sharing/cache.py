"""Recipes and indexes that were fetched: files by their SHA-256, written whole or not at all.

Names of recipes and remotes never become paths here. Whoever finishes first writes a file; another process that
fetches the same writes the same bytes over it by a rename.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from dmq_fx.errors import InternalError, RemoteError
from dmq_fx.recipe.source import SIZE_LIMIT

_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256_of(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def write_atomically(path: Path, data: bytes, *, shared: bool = False) -> Path:
    """Write a file that is complete or not there; missing folders are made.

    It is for the user alone; shared: it may be read as the umask says, or as the file that it replaces could.
    """
    partial = path.parent / f".{secrets.token_hex(8)}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o777 if shared else 0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(partial, flags, 0o666 if shared else 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if shared and path.is_file() and not path.is_symlink():
                partial.chmod(stat.S_IMODE(path.stat().st_mode))
            os.replace(partial, path)  # noqa: PTH105 - a link at `path` is replaced, not followed
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
    except OSError as error:
        raise RemoteError(f"cannot write the file: {error.strerror}", where=str(path)) from error
    return path


class RecipeCache:
    """A folder of files by digest, and the last index of every remote."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, sha256: str, suffix: str = ".yaml") -> Path | None:
        """The file with this digest; None if it is not there or was changed."""
        path = self._path(sha256, suffix)
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size > SIZE_LIMIT:
                return None
            intact = suffix != ".yaml" or sha256_of(path.read_bytes()) == sha256
        except OSError:
            return None
        return path if intact else None

    def put(self, data: bytes, sha256: str, suffix: str = ".yaml") -> Path:
        """Keep the bytes of a recipe, or a signature that belongs to the recipe with this digest."""
        if suffix == ".yaml" and sha256_of(data) != sha256:
            raise InternalError("a file is kept under a digest that it has not")
        return write_atomically(self._path(sha256, suffix), data)

    def index_path(self, address: str) -> Path:
        """Where the last index of the remote at `address` is kept."""
        return self.root / "indexes" / f"{sha256_of(address.encode())}.json"

    def _path(self, sha256: str, suffix: str) -> Path:
        if not _SHA256.fullmatch(sha256) or suffix not in (".yaml", ".sig"):
            raise InternalError(f"{sha256[:80]!r} is not a SHA-256")
        return self.root / "files" / sha256[:2] / f"{sha256}{suffix}"
