"""Publish a recipe: its file by its content, then the index that names it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from dmq_fx.errors import RecipeError, RemoteError
from dmq_fx.recipe import resolve
from dmq_fx.recipe.library import Library
from dmq_fx.recipe.source import decode, read_bytes, read_recipe_text
from dmq_fx.sharing import signing
from dmq_fx.sharing.address import Address, redact
from dmq_fx.sharing.cache import RecipeCache, sha256_of, write_atomically
from dmq_fx.sharing.index import BYTES_LIMIT, INDEX_NAME, Entry, clean, index_text, parse_index
from dmq_fx.sharing.remotes import Remote, lock_beside
from dmq_fx.sharing.transport import FilesystemSession

ATTEMPTS = 3
"""An index that another one wrote meanwhile is read again, so often."""


@dataclass(frozen=True)
class Pushed:
    """What a push did. new: the remote did not have this version before."""

    entry: Entry
    new: bool


def push(
    path: Path, remote: Remote, *, library: Library, pass_options: Mapping[str, type], cache: RecipeCache
) -> Pushed:
    """Publish the recipe file at `path`, with its signature if there is one beside it.

    The recipe must be valid, say its version, and extend by name only. A version that the remote has with other content
    is refused; the same content again changes nothing. Raises RecipeError, RemoteError, SignatureError.
    """
    address = remote.address
    if address.is_git or address.protocol in ("http", "https", "github"):
        hint = "push to a folder of a clone (remote add NAME FOLDER), then commit, tag and push it with git"
        raise RemoteError("this remote can only be read", where=f"remote {remote.name}", hint=hint)
    data = read_bytes(path)
    entry = _entry(path, data, library, pass_options)
    beside = path.with_name(path.name + signing.SUFFIX)
    signature = beside.read_bytes() if beside.is_file() else None
    if signature is not None:
        signing.check_matches(data, signature, str(beside))
        entry = Entry(**{**vars(entry), "signed": True})
    with lock_beside(cache.index_path(address.text), "another process is pushing"):
        return _publish(entry, data, signature, remote)


def _entry(path: Path, data: bytes, library: Library, pass_options: Mapping[str, type]) -> Entry:
    tree = read_recipe_text(decode(data, str(path)), str(path))
    extends = tree.get("extends")
    for parent in extends.entries() or (extends,) if extends else ():
        if isinstance(parent.value, str) and (parent.value.endswith((".yaml", ".yml")) or parent.value[:1] in "./"):
            hint = "push the parent first and name it, or push the recipe's lock, which extends nothing"
            message = f"a recipe that is shared extends by name, and this one names the file {parent.value!r}"
            raise RecipeError(message, where=str(parent.where), hint=hint)
    recipe = resolve(path, pass_options=pass_options, library=library).recipe
    if tree.get("version") is None:
        raise RecipeError("a recipe that is shared says its version", where=str(path), hint="add `version: 1.0.0`")
    return Entry(recipe.name, str(Version(recipe.version)), sha256_of(data), len(data), clean(recipe.summary))


def _publish(entry: Entry, data: bytes, signature: bytes | None, remote: Remote) -> Pushed:
    where = f"remote {remote.name}"
    for attempt in range(ATTEMPTS):
        entries = {(one.name, Version(one.version)): one for one in _index(remote)}
        old = entries.get((entry.name, Version(entry.version)))
        if old is not None and old.sha256 != entry.sha256:
            message = f"{entry.reference} is there already, with other content ({old.sha256[:12]}…)"
            raise RemoteError(message, where=where, hint="a version never changes: raise `version:` and push that")
        if old is not None and (old.signed or not entry.signed):
            return Pushed(old, new=attempt > 0)
        _write(remote.address, entry.path, data)
        if signature is not None:
            _write(remote.address, entry.path + signing.SUFFIX, signature)
        entries[entry.name, Version(entry.version)] = entry
        _write(remote.address, INDEX_NAME, index_text(entries.values()))
        if entry in _index(remote):
            return Pushed(entry, new=old is None)
        time.sleep(0.1 * (attempt + 1))
    raise RemoteError("others write its index at the same time", where=where, hint="try again")


def _index(remote: Remote) -> tuple[Entry, ...]:
    try:
        data = FilesystemSession(remote.address).read(INDEX_NAME, BYTES_LIMIT)
    except FileNotFoundError:
        return ()
    return parse_index(data, f"remote {remote.name}")


def _write(address: Address, path: str, data: bytes) -> None:
    if address.is_local:
        write_atomically(Path(address.url) / path, data, shared=True)
        return
    try:
        import fsspec

        filesystem: Any = fsspec.filesystem(address.protocol, skip_instance_cache=True, use_listings_cache=False)
        filesystem.pipe_file(f"{address.url}/{path}", data)
    except Exception as error:  # whatever a file system's libraries raise
        reason = redact(str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise RemoteError(f"cannot be written: {reason}", where=address.text) from None
