"""Calibration sets on disk: what the denoiser is given at each step of a sampler, captured once and reused.

A set is a sequence of batches, a batch a list of sampler steps, a step a flat mapping of names to tensors. On disk it
is a folder with one safetensors file for each batch and an index, `calibration.json`, with their sizes and SHA-256.
Within a batch, tensors that are the same bits (prompt embeddings at every step) are stored once. The index is
written last and the folder renamed into place, so a capture that was interrupted is never taken for a set.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError, safe_open

from dmq_fx.artifact.container import hash_file, sibling, sync_file, sync_folder
from dmq_fx.artifact.manifest import FileRecord, canonical_json, is_file_name, plain_json
from dmq_fx.artifact.tensors import METADATA_KEY, load_metadata, load_tensors, save_tensors
from dmq_fx.errors import ArtifactError, CalibrationError, InternalError
from dmq_fx.models.fingerprint import tensor_hash

STORE_FORMAT = 1
INDEX_NAME = "calibration.json"
LAST_USED_NAME = "last_used"

_KEY = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"\.[0-9a-f]{50}\.partial-[0-9a-f]{16}")
_PARTIAL_SECONDS = 24 * 3600

Step = Mapping[str, torch.Tensor]


class CalibrationWriter:
    """Context manager that writes a set to the folder `path`, in place once the block ends without an exception.

    If another process finished the same set first, its set stays and this copy is discarded. `on_finish` is called
    once the set is in place. Files are written as batches come; one batch is held in memory.
    """

    def __init__(
        self, path: Path, metadata: Mapping[str, Any] | None = None, *, on_finish: Callable[[], object] | None = None
    ) -> None:
        self.path = path
        self._metadata: dict[str, Any] = plain_json(metadata or {}, where="metadata")
        self._on_finish = on_finish
        self._partial = sibling(path, "partial")
        self._files: dict[int, FileRecord] = {}
        self._steps: int | None = None

    def __enter__(self) -> CalibrationWriter:
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise self._cannot_write(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as failure:
            raise self._cannot_write(failure) from failure
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
        if kind is None and self._on_finish is not None:
            self._on_finish()

    def update_metadata(self, **metadata: Any) -> None:
        """Add to the metadata what is known only while capturing, such as `timesteps`: one number for each step."""
        self._metadata |= plain_json(metadata, where="metadata")

    def add_batch(self, index: int, steps: Sequence[Step]) -> None:
        """Write batch `index` (from 0, in any order): at each step, the inputs by name, of any shape and dtype."""
        if index < 0 or index in self._files:
            raise InternalError(f"calibration batch {index} is negative or was added before", where=str(self.path))
        if not steps or (self._steps is not None and len(steps) != self._steps):
            wanted = "at least one" if self._steps is None else str(self._steps)
            raise CalibrationError(
                f"batch {index} has {len(steps)} sampler steps, expected {wanted}", where=str(self.path)
            )
        stored: dict[str, torch.Tensor] = {}
        names: dict[str, str] = {}
        table: list[dict[str, str]] = []
        for step in steps:
            row: dict[str, str] = {}
            for name, tensor in step.items():
                row[name] = names.setdefault(tensor_hash(tensor), f"t{len(names):06d}")
                stored.setdefault(row[name], tensor)
            table.append(row)
        file = self._partial / f"batch-{index:06d}.safetensors"
        try:
            save_tensors(file, stored, {"steps": table})
            self._files[index] = hash_file(file)
        except ArtifactError as error:
            raise self._cannot_write(error.message) from error
        self._steps = len(steps)

    def _finish(self) -> None:
        if not self._files:
            raise CalibrationError("no batch was captured", where=str(self.path))
        missing = sorted(set(range(max(self._files) + 1)) - set(self._files))
        if missing:
            raise CalibrationError(f"batch {missing[0]} was not captured", where=str(self.path))
        timesteps = self._metadata.get("timesteps")
        numbers = isinstance(timesteps, list) and all(type(number) in (int, float) for number in timesteps)
        if timesteps is not None and not (numbers and len(timesteps) == self._steps):
            raise InternalError(f"timesteps must be {self._steps} numbers, got {timesteps!r:.80}", where=str(self.path))
        index = {
            "format": STORE_FORMAT,
            "steps": self._steps,
            "metadata": self._metadata,
            "batches": [vars(self._files[i]) for i in sorted(self._files)],
        }
        file = self._partial / INDEX_NAME
        file.write_text(canonical_json(index), encoding="ascii")
        (self._partial / LAST_USED_NAME).touch()
        sync_file(file)
        sync_folder(self._partial)
        try:
            self._partial.rename(self.path)
        except OSError:
            if _is_set(self.path):
                return  # another process was first: its set is as good as this one
            _remove_folder(self.path)
            self._partial.rename(self.path)
        sync_folder(self.path.parent)

    def _cannot_write(self, reason: object) -> CalibrationError:
        return CalibrationError(
            f"cannot write the calibration set: {reason}",
            where=str(self.path),
            hint="check the space and the permissions there, or choose another cache folder",
        )


@dataclass(frozen=True)
class CalibrationSet:
    """A complete set; iterating reads one batch file at a time and yields (batch index, step index, inputs).

    Inputs that are the same bits at several steps of a batch are one tensor: do not write into them.
    """

    path: Path
    steps: int
    metadata: Mapping[str, Any]
    batches: tuple[FileRecord, ...]

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> CalibrationSet:
        """Read the index of the set at `path` and check its files: sizes, and SHA-256 if `verify`.

        Raises CalibrationError if anything is missing, damaged, or of another format.
        """
        found = _read_index(path)
        for record in found.batches:
            file = path / record.name
            if not file.is_file() or file.stat().st_size != record.size:
                raise _damaged(f"{record.name} is missing or not {record.size} bytes", path)
            try:
                changed = verify and hash_file(file) != record
            except ArtifactError as error:
                raise _damaged(f"{record.name}: {error.message}", path) from error
            if changed:
                raise _damaged(f"{record.name} was changed after it was written", path)
        return found

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The sampler's timestep at each step, in sampling order; empty if the capture did not record them."""
        return tuple(self.metadata.get("timesteps") or ())

    @property
    def bytes(self) -> int:
        """Size of the batches on disk."""
        return sum(record.size for record in self.batches)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def batch(self, index: int) -> list[dict[str, torch.Tensor]]:
        """The steps of one batch. Raises CalibrationError if its file is gone or cannot be read."""
        _touch(self.path)
        file = self.path / self.batches[index].name
        try:
            table = load_metadata(file)["steps"]
            stored = load_tensors(file)
            return [{name: stored[key] for name, key in row.items()} for row in table]
        except (ArtifactError, AttributeError, KeyError, TypeError) as error:
            raise _damaged(f"{file.name} cannot be read: {error}", self.path) from error

    @contextmanager
    def opened(self, index: int) -> Iterator[tuple[Any, list[dict[str, str]]]]:
        """The file of one batch, to read parts of it, and its table: at each step, the stored tensor of every name.

        The file is a `safe_open` and mapped, so that a slice costs what the slice holds; what it gives lies in the
        map, and must be copied to be kept. Raises CalibrationError for what goes wrong with the file in the block.
        """
        _touch(self.path)
        file = self.path / self.batches[index].name
        try:
            with safe_open(file, framework="pt") as opened:
                yield opened, json.loads(opened.metadata()[METADATA_KEY])["steps"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise _damaged(f"{file.name} cannot be read: {error}", self.path) from error

    def __iter__(self) -> Iterator[tuple[int, int, dict[str, torch.Tensor]]]:
        for index in range(len(self)):
            yield from self._steps_of(index)

    def _steps_of(self, index: int) -> Iterator[tuple[int, int, dict[str, torch.Tensor]]]:
        # a generator of its own: its batch is released before the next one is read
        steps = self.batch(index)
        for number in range(len(steps)):
            yield index, number, steps[number]


class CalibrationCache:
    """Calibration sets by key under `root` (default: the user's cache folder), the least recently used removed first.

    `limit_bytes` bounds what is kept, not what is used: a set larger than the limit can be written and read, and
    the next `evict()` that does not name it removes it.
    """

    def __init__(self, root: Path | None = None, limit_bytes: int = 8 * 2**30) -> None:
        self.root = platformdirs.user_cache_path("dmq", appauthor=False) / "calibration" if root is None else Path(root)
        self.limit_bytes = limit_bytes

    @staticmethod
    def key_of(**parts: Any) -> str:
        """SHA-256 of all that a set depends on: plain JSON, such as fingerprint, sampler, steps, prompts, seed."""
        return hashlib.sha256(canonical_json({"store": STORE_FORMAT, "parts": parts}).encode("ascii")).hexdigest()

    def get(self, key: str) -> CalibrationSet | None:
        """The set of this key, noted as used now; None if there is none. A damaged one is removed, with a warning."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            found = CalibrationSet.open(path)
        except CalibrationError as error:
            _remove_folder(path)
            warnings.warn(f"captured again: {error.message} ({path})", stacklevel=2)
            return None
        _touch(path)
        return found

    def writer(self, key: str, metadata: Mapping[str, Any] | None = None) -> CalibrationWriter:
        """A writer of the set of this key; when it is done, others make room for it: `CalibrationSet.open(path)`."""
        return CalibrationWriter(self._path(key), metadata, on_finish=lambda: self.evict(keep=(key,)))

    def evict(self, keep: Collection[str] = ()) -> list[str]:
        """Remove sets until the rest is within the limit, and return their keys; never those in `keep`.

        Sets that are larger than the limit by themselves go first (in `keep`, they cost no other set its place),
        then the least recently used. What interrupted captures left more than a day ago goes too.
        """
        sets: list[tuple[bool, int, str, int]] = []
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            with suppress(OSError):  # another process may be removing the same folder
                if _KEY.fullmatch(folder.name):
                    size = sum(file.stat().st_size for file in folder.iterdir())
                    sets.append((size <= self.limit_bytes, _last_used(folder), folder.name, size))
                elif _PARTIAL.fullmatch(folder.name) and folder.stat().st_mtime < time.time() - _PARTIAL_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
        total = sum(size for fits, _, key, size in sets if fits or key not in keep)
        removed: list[str] = []
        for _, _, key, size in sorted(sets):
            if total > self.limit_bytes and key not in keep and _remove_folder(self.root / key):
                total -= size
                removed.append(key)
        return removed

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise InternalError(f"a key of calibration sets is made by key_of, got {key!r:.80}")
        return self.root / key


def _is_set(path: Path) -> bool:
    """Whether there is a complete set at `path`; contents are not hashed."""
    with suppress(CalibrationError):
        CalibrationSet.open(path, verify=False)
        return True
    return False


def _touch(path: Path) -> None:
    """Note that the set at `path` is in use; a set on a read-only disk cannot be noted and need not be."""
    with suppress(OSError):
        os.utime(path / LAST_USED_NAME)


def _remove_folder(path: Path) -> bool:
    """Delete a set, renamed first so that it is never seen half deleted; False if it cannot be renamed."""
    aside = sibling(path, "partial")
    try:
        path.rename(aside)
    except OSError:
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _last_used(path: Path) -> int:
    """When the set was last used, in nanoseconds; 0 if it has lost its note of that."""
    with suppress(OSError):
        return (path / LAST_USED_NAME).stat().st_mtime_ns
    return 0


def _read_index(path: Path) -> CalibrationSet:
    try:
        raw = json.loads((path / INDEX_NAME).read_bytes())
        if raw["format"] != STORE_FORMAT:
            raise _damaged(f"its format is {raw['format']!r}, not {STORE_FORMAT}", path)
        records = tuple(FileRecord(entry["name"], entry["size"], entry["sha256"]) for entry in raw["batches"])
        found = CalibrationSet(path, raw["steps"], raw["metadata"], records)
    except FileNotFoundError as error:
        raise CalibrationError(f"no complete calibration set: it has no {INDEX_NAME}", where=str(path)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(f"{INDEX_NAME} cannot be read: {error!r}", path) from error
    if type(found.steps) is not int or not isinstance(found.metadata, dict) or not records:
        raise _damaged(f"{INDEX_NAME} is not an index", path)
    for record in records:
        if not is_file_name(record.name):
            raise _damaged(f"{record.name!r} cannot be the name of a batch", path)
    return found


def _damaged(message: str, path: Path) -> CalibrationError:
    return CalibrationError(
        f"the calibration set is damaged: {message}", where=str(path), hint="delete the folder to capture it again"
    )
