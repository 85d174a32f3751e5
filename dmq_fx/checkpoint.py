"""Checkpoints of a compile: how far its learned passes are, so that `dmq compile --resume` goes on after a kill.

The folder `.NAME.checkpoint` beside the artifact's holds one safetensors file for each pass that saved something, with
the key of the compile in its metadata. A file is written beside itself, synced and renamed: whenever the process
dies, the old one or the new one is there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from dmq_fx.artifact.container import sibling, sync_folder
from dmq_fx.artifact.manifest import plain_json
from dmq_fx.artifact.tensors import load_metadata, load_tensors, save_tensors
from dmq_fx.errors import ArtifactError, InternalError
from dmq_fx.models.fingerprint import tensor_hash

CHECKPOINT_FORMAT = 1
INTERVAL = 60.0
"""Seconds between two writes of a compile, at least."""

_SECTION = re.compile(r"[0-9]{2,}-[A-Za-z0-9_.-]{1,100}")
_FILE = re.compile(_SECTION.pattern + r"\.safetensors")
_PARTIAL = re.compile(r"\.[0-9]{2,}-.{1,50}\.partial-[0-9a-f]{16}")
_START_AGAIN = "leave out --resume to start again from the beginning"


def checkpoint_folder(output: Path | str) -> Path:
    """Where the checkpoint of a compile to `output` is, if it has one."""
    output = Path(os.path.abspath(output))  # noqa: PTH100 - as the artifact's own folder: resolve() would follow a link
    return output.with_name(f".{output.name}.checkpoint")


def has_checkpoint(output: Path | str) -> bool:
    """Whether a compile to `output` has left a checkpoint with something in it."""
    return any(_sections(checkpoint_folder(output)))


class Checkpoint:
    """The checkpoint of one compile to `output`; its folder is made when something is first saved.

    resume: what an earlier compile left is gone on with; otherwise it is removed. interval: seconds between two writes.
    clock: seconds, from any start. Raises ArtifactError if what is there cannot be removed.
    """

    def __init__(
        self,
        output: Path | str,
        *,
        resume: bool = False,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = checkpoint_folder(output)
        self._interval = interval
        self._clock = clock
        self._key: dict[str, Any] = {}
        if not resume:
            self.remove()
        self._written = clock()

    def require(self, **parts: Any) -> None:
        """Add to the key: JSON values by name (recipe, model, calibration, version) that decide what passes learn.

        Raises ArtifactError if the checkpoint was made with others, saying which, or if a file of it is damaged.
        """
        self._key |= plain_json(parts, where="key")
        for file in _sections(self.folder):
            self._check(file, _metadata(file))

    def section(self, name: str) -> PassCheckpoint:
        """The part of one pass, named after its place in the recipe and itself: `00-les`."""
        if not _SECTION.fullmatch(name):
            raise InternalError(f"{name!r} cannot be the name of a section of a checkpoint")
        return PassCheckpoint(self, self.folder / f"{name}.safetensors")

    def remove(self) -> None:
        """Delete what dmq wrote into the folder, and the folder; files that others put there stay, and so does it."""
        with _os_errors("cannot remove the checkpoint", self.folder):
            for file in self.folder.iterdir() if self.folder.is_dir() else ():
                if _FILE.fullmatch(file.name) or _PARTIAL.fullmatch(file.name):
                    file.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def is_due(self) -> bool:
        """Whether enough time has passed since the last write, of any section."""
        return self._clock() - self._written >= self._interval

    def write(self, file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace a section's file. Raises ArtifactError if it cannot be written; the old one is then still there."""
        metadata = {
            "format": CHECKPOINT_FORMAT,
            "key": self._key,
            "facts": facts,
            "sha256": {name: tensor_hash(tensor) for name, tensor in tensors.items()},
        }
        partial = sibling(file, "partial")
        try:
            with _os_errors("cannot write the checkpoint", file):
                self.folder.mkdir(parents=True, exist_ok=True)
                save_tensors(partial, tensors, metadata)
                partial.replace(file)
                sync_folder(self.folder)
        finally:
            partial.unlink(missing_ok=True)
        self._written = self._clock()  # after it: however long writing takes, learning has its time in between

    def read(self, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of a section's file, None if there is none. Raises ArtifactError as `require` does."""
        if not file.exists():
            return None
        metadata = _metadata(file)
        self._check(file, metadata)
        tensors = _undamaged(load_tensors, file)
        if {name: tensor_hash(tensor) for name, tensor in tensors.items()} != metadata.get("sha256"):
            raise _damaged(file, "a tensor was changed after it was written")
        if not isinstance(metadata.get("facts"), dict):
            raise _damaged(file, "it has no facts")
        return tensors, metadata["facts"]

    def _check(self, file: Path, metadata: dict[str, Any]) -> None:
        found = metadata.get("key")
        if metadata.get("format") != CHECKPOINT_FORMAT or not isinstance(found, dict):
            raise _damaged(file, f"it is not of format {CHECKPOINT_FORMAT}")
        differences = [_difference(name, found.get(name), part) for name, part in self._key.items()]
        if any(differences):
            raise ArtifactError(
                f"the checkpoint is of another compile: {', '.join(filter(None, differences))}",
                where=str(self.folder),
                hint=f"{_START_AGAIN}, which discards the checkpoint; or compile what it is of",
            )


class PassCheckpoint:
    """What one pass keeps in the checkpoint of a compile."""

    def __init__(self, checkpoint: Checkpoint, file: Path) -> None:
        self._checkpoint = checkpoint
        self._file = file

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors (on the CPU) and facts as they were last saved, None if they never were. Raises ArtifactError."""
        return self._checkpoint.read(self._file)

    def save(
        self,
        tensors: Callable[[], Mapping[str, Tensor]] | Mapping[str, Tensor],
        facts: Mapping[str, Any],
        *,
        force: bool = False,
    ) -> bool:
        """Replace what was saved, if that is due or `force`, and say whether it was; cheap to ask at every iteration.

        tensors: a function is only called if they are written. facts: JSON values (no NaN, no infinities).
        Raises ArtifactError if the file cannot be written.
        """
        if not force and not self._checkpoint.is_due():
            return False
        self._checkpoint.write(self._file, tensors() if callable(tensors) else tensors, facts)
        return True


def _sections(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(file for file in folder.iterdir() if _FILE.fullmatch(file.name))


def _metadata(file: Path) -> dict[str, Any]:
    return _undamaged(load_metadata, file)


def _undamaged(read: Callable[[Path], dict[str, Any]], file: Path) -> dict[str, Any]:
    try:
        return read(file)
    except ArtifactError as error:
        raise _damaged(file, error.message) from error


def _damaged(file: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"the checkpoint is damaged: {reason}", where=str(file), hint=_START_AGAIN)


def _difference(name: str, there: Any, now: Any) -> str | None:
    """What to say of a part of the key that differs: the start of a hash; of several values those that differ."""
    if there == now:
        return None
    if isinstance(there, dict) and isinstance(now, dict):
        inner = (_difference(f"{name} of {key}", there.get(key), now.get(key)) for key in sorted({*there, *now}))
        return ", ".join(filter(None, inner))
    return f"{name} is {str(there)[:12]}, now {str(now)[:12]}"


@contextmanager
def _os_errors(what: str, where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{what}: {error}", where=str(where)) from error
