"""The manifest of an artifact: what it was made from, and the size and SHA-256 of each of its files.

Canonical JSON here is JSON with sorted keys, no spaces and only ASCII characters: the same value is always the same
bytes. A manifest's digest is the SHA-256 of the canonical JSON of everything else in it. It holds no time and
no path, so the same content made by the same version of dmq has the same digest wherever it was made.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from dmq_fx.errors import ArtifactError, InternalError

FORMAT = 1
"""The newest artifact format that this version reads, and the one that it writes."""

MANIFEST_NAME = "manifest.json"

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEYS = ("format", "created_by", "files", "content", "digest")
_DAMAGED = "the artifact is damaged: copy it again, or compile it again"


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact: its name in the folder, its size in bytes, its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A checked manifest; made by `make_manifest` or `parse_manifest`. `content` is free JSON: do not change it."""

    format: int
    created_by: str
    files: tuple[FileRecord, ...]
    content: dict[str, Any]
    digest: str

    def record(self, name: str) -> FileRecord | None:
        """The record of the file called `name`, or None if the manifest does not list it."""
        return next((record for record in self.files if record.name == name), None)


def canonical_json(value: Any) -> str:
    """`value` as canonical JSON; InternalError names the place of whatever is not plain JSON."""
    return json.dumps(plain_json(value), sort_keys=True, separators=(",", ":"))


def plain_json(value: Any, *, where: str = "$") -> Any:
    """A deep copy of `value` as it would come back from a JSON file: tuples become lists, nothing else changes.

    Raises InternalError, with the place, for a key that is not a string, for NaN and infinities, and for any
    object that JSON does not have: those would come back as something else, and change the digest.
    """
    if value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise InternalError(f"a key of JSON must be a string, got {key!r}", where=where)
        return {key: plain_json(entry, where=f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry, where=f"{where}[{i}]") for i, entry in enumerate(value)]
    raise InternalError(f"{value!r} of type {type(value).__name__} is not JSON", where=where)


def is_file_name(name: object) -> bool:
    """Whether an artifact may have a file of this name: letters, digits, `.`, `_`, `-`; no folders, not hidden."""
    return isinstance(name, str) and _FILE_NAME.fullmatch(name) is not None and name != MANIFEST_NAME


def make_manifest(files: Iterable[FileRecord], content: Mapping[str, Any]) -> Manifest:
    """The manifest of this version of dmq for `files` (sorted by name) and `content`."""
    body = {
        "format": FORMAT,
        "created_by": f"dmq-fx {version('dmq-fx')}",
        "files": [vars(record) for record in sorted(files, key=lambda record: record.name)],
        "content": plain_json(content, where="content"),
    }
    return parse_manifest(json.dumps({**body, "digest": _digest(body)}), where="new manifest")


def manifest_to_json(manifest: Manifest) -> str:
    """The text of `manifest.json`: the same manifest is always the same text."""
    return json.dumps(_body(manifest) | {"digest": manifest.digest}, indent=2, sort_keys=True) + "\n"


def parse_manifest(text: str | bytes, *, where: str) -> Manifest:
    """Read and check the text of a `manifest.json`; every problem is an ArtifactError at `where`."""
    try:
        raw = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"not a manifest: not valid JSON ({error})", where=where, hint=_DAMAGED) from error
    if not isinstance(raw, dict) or type(raw.get("format")) is not int:
        raise _damaged("not a manifest: it has no integer 'format'", where)
    if raw["format"] > FORMAT:
        raise ArtifactError(
            f"artifact format {raw['format']} is newer than this dmq understands ({FORMAT})",
            where=where,
            hint="upgrade dmq",
        )
    if raw["format"] < 1:
        raise _damaged(f"there is no artifact format {raw['format']}", where)
    for key in _KEYS:
        if key not in raw:
            raise _damaged(f"the manifest has no {key!r}", where)
    for key in sorted(raw.keys() - set(_KEYS)):
        raise _damaged(f"the manifest has an unknown key {key!r}", where)
    for key, kind in (("created_by", str), ("files", list), ("content", dict), ("digest", str)):
        if not isinstance(raw[key], kind):
            raise _damaged(f"{key!r} of the manifest must be a {kind.__name__}, got {raw[key]!r:.60}", where)
    files = tuple(_parse_record(entry, where) for entry in raw["files"])
    names = [record.name for record in files]
    for name in names:
        if names.count(name) > 1:
            raise _damaged(f"the manifest lists {name!r} twice", where)
    manifest = Manifest(raw["format"], raw["created_by"], files, raw["content"], raw["digest"])
    try:
        expected = _digest(_body(manifest))
    except (InternalError, RecursionError) as error:  # what Python parses and JSON does not have: 1e999
        raise _damaged(f"the content of the manifest is not plain JSON ({error})", where) from error
    if manifest.digest != expected:
        raise ArtifactError(f"{MANIFEST_NAME} was changed after it was written", where=where, hint=_DAMAGED)
    return manifest


def _parse_record(entry: object, where: str) -> FileRecord:
    if not isinstance(entry, dict) or entry.keys() != {"name", "size", "sha256"}:
        raise _damaged(f"a file of the manifest must have 'name', 'size' and 'sha256', got {entry!r:.120}", where)
    name, size, sha256 = entry["name"], entry["size"], entry["sha256"]
    if not is_file_name(name):
        raise _damaged(f"{name!r:.120} cannot be the name of a file of an artifact", where)
    if type(size) is not int or size < 0:
        raise _damaged(f"the size of {name!r} must be a number of bytes, got {size!r:.60}", where)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _damaged(f"the sha256 of {name!r} must be 64 hexadecimal digits, got {sha256!r:.80}", where)
    return FileRecord(name, size, sha256)


def _body(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": manifest.format,
        "created_by": manifest.created_by,
        "files": [vars(record) for record in manifest.files],
        "content": manifest.content,
    }


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode("ascii")).hexdigest()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _damaged(message: str, where: str) -> ArtifactError:
    return ArtifactError(message, where=where, hint=_DAMAGED)
