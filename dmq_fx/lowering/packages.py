"""Native code that was made on this machine, kept in the user's cache folder.

A package is code that will be run: nothing is ever loaded from an artifact, only what this program has written into the
cache itself, and only if its hash is the one noted beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import platformdirs
import torch

from dmq_fx.artifact.container import hash_file
from dmq_fx.artifact.manifest import canonical_json
from dmq_fx.environment import package_versions
from dmq_fx.errors import BackendError, DmqError

FORMAT = 1
NOTE = "package.json"
PARTIAL = ".partial-"
PARTIAL_SECONDS = 24 * 3600
CODE_SUFFIXES = (".py", ".cpp", ".h")


def machine() -> dict[str, Any]:
    """What compiled code depends on beside its source: the CPU's abilities, versions, the compiler's limits."""
    abilities = sorted(
        name.removeprefix("_is_").removesuffix("_supported")
        for name in dir(torch.cpu)
        if name.startswith("_is_") and name.endswith("_supported") and getattr(torch.cpu, name)()
    )
    limits = {name: os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")}
    return {
        "abilities": abilities,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "limits": limits,
        "versions": package_versions(),
        "source": source_digest(),
    }


@cache
def source_digest() -> str:
    """SHA-256 of this package's own code: a change to it may change what an artifact is lowered to."""
    found = hashlib.sha256()
    for name in ("dmq_fx", "dmq_fx.backends"):
        spec = find_spec(name)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            for path in sorted(path for path in Path(folder).rglob("*") if path.suffix in CODE_SUFFIXES):
                found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


class PackageCache:
    """Folders of files by key under `root` (default: the user's cache folder), the least recently used removed first.

    `limit_bytes` bounds what is kept, not what is used: a package that is larger by itself stays until the next is put.
    """

    def __init__(self, root: Path | None = None, limit_bytes: int = 8 * 2**30) -> None:
        self.root = platformdirs.user_cache_path("dmq", appauthor=False) / "packages" if root is None else Path(root)
        self.limit_bytes = limit_bytes

    @staticmethod
    def key_of(**parts: Any) -> str:
        """SHA-256 of all that a package depends on (plain JSON)."""
        return hashlib.sha256(canonical_json({"format": FORMAT, "parts": parts}).encode("ascii")).hexdigest()

    def get(self, key: str) -> Path | None:
        """The folder of this key if it is there, whole, and nobody else's; a damaged one is removed with a warning."""
        folder = self.root / key
        try:
            if not os.path.lexists(folder):
                return None
            problem = _writable_by_others(self.root)
        except OSError:  # another process has removed all of it meanwhile
            return None
        if problem is not None:  # what is in there may be good, and may be another user's
            warnings.warn(f"compiled again: {problem} ({self.root})", stacklevel=2)
            return None
        problem = _problem(folder)
        if problem is None:
            with suppress(OSError):  # a cache that cannot be written to is still read
                os.utime(folder)
            return folder
        if not os.path.lexists(folder):  # another process has removed it meanwhile
            return None
        if folder.is_symlink():
            with suppress(OSError):
                folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        warnings.warn(f"compiled again: {problem} ({folder})", stacklevel=2)
        return None

    def put(self, key: str, write: Callable[[Path], None]) -> Path:
        """Have `write` fill a folder, note the hashes of its files, and put it in place; one that is there stays.

        Raises BackendError where nothing can be written, or where others can write, too.
        """
        partial = self._partial()
        try:
            write(partial)
            try:
                hashes = {path.name: hash_file(path).sha256 for path in sorted(partial.iterdir())}
                (partial / NOTE).write_text(canonical_json({"files": hashes}) + "\n")
                target = self._place(partial, self.root / key)
            except OSError as error:
                raise self._cannot_keep(f"native code cannot be kept: {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._evict(target)
        return target

    @staticmethod
    def _place(partial: Path, target: Path) -> Path:
        """Move a folder to `target`, or beside it where something is that was refused and would not go away."""
        try:
            return partial.rename(target)
        except OSError:
            if not os.path.lexists(target):
                raise
        if _problem(target) is None:
            return target
        return partial.rename(target.with_name(f"{target.name}-{secrets.token_hex(8)}"))

    def _partial(self) -> Path:
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            problem = _writable_by_others(self.root)
            if problem is None:
                return Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.root))
        except OSError as error:
            problem = f"native code cannot be kept: {error.strerror or error}"
        raise self._cannot_keep(problem)

    def _cannot_keep(self, problem: str) -> BackendError:
        hint = "a folder that you alone can write to is needed; --no-compile does without native code"
        return BackendError(problem, where=str(self.root), hint=hint)

    def _evict(self, newest: Path) -> None:
        """Remove packages until the rest is within the limit, but never `newest`.

        What interrupted compilations left more than a day ago goes first.
        """
        found: list[tuple[int, Path, int]] = []
        for folder in self.root.iterdir():
            with suppress(OSError):  # another process may be removing the same folder
                info, size = folder.stat(), sum(file.stat().st_size for file in folder.iterdir())
                if folder.name.startswith(PARTIAL):
                    if info.st_mtime < time.time() - PARTIAL_SECONDS:
                        shutil.rmtree(folder, ignore_errors=True)
                elif folder != newest:
                    found.append((info.st_mtime_ns, folder, size))
        total = sum(size for _, _, size in found) + sum(file.stat().st_size for file in newest.iterdir())
        for _, folder, size in sorted(found):
            if total <= self.limit_bytes:
                return
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


def _writable_by_others(folder: Path) -> str | None:
    """Why what lies in a folder may not be what this user has put there; None if it must be. Raises OSError."""
    info = folder.stat()
    if hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        return "others can write to the compiled code"
    return None


def _problem(folder: Path) -> str | None:
    """Why the files in a folder should not be loaded; None if they may be."""
    if folder.is_symlink():
        return "the compiled code is a link to another place"
    try:
        problem = _writable_by_others(folder)
        if problem is not None:
            return problem
        hashes = json.loads((folder / NOTE).read_text("utf-8"))["files"]
        names = {path.name for path in folder.iterdir()} - {NOTE}
        if names != set(hashes) or any(hash_file(folder / name).sha256 != digest for name, digest in hashes.items()):
            return "the compiled code is damaged"
    except (DmqError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return "the compiled code is damaged"
    return None
