"""The list of remotes that the user configured, in the order in which they are asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dmq_fx.errors import RemoteError, did_you_mean
from dmq_fx.sharing.address import Address, parse_address
from dmq_fx.sharing.cache import write_atomically

FORMAT = 1
LOCK_SECONDS = 20

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_TAKEN = ("library", "user", "file", "builtin")


@dataclass(frozen=True)
class Remote:
    """A remote under the user's name for it. require_signed: nothing unsigned is taken from it."""

    name: str
    address: Address
    require_signed: bool = False


def read_remotes(path: Path) -> tuple[Remote, ...]:
    """The remotes listed in the file at `path`; none if there is no such file. Raises RemoteError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise RemoteError(f"cannot read the list of remotes: {error.strerror}", where=str(path)) from error
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise RemoteError(f"the list has the format {document['format']!r}, not {FORMAT}", where=str(path))
        listed = document["remotes"]
        if not all(isinstance(row["address"], str) for row in listed):
            raise TypeError("an address is not a string")
        rows = [(row["name"], row["address"], bool(row.get("require_signed"))) for row in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RemoteError(f"the list of remotes is damaged: {error!r}", where=str(path)) from None
    return tuple(Remote(check_name(name), parse_address(address), signed) for name, address, signed in rows)


def add_remote(path: Path, remote: Remote) -> None:
    """Append a remote; raises RemoteError if its name is taken."""
    with lock_beside(path, "another process is changing the list of remotes"):
        remotes = read_remotes(path)
        if any(one.name == remote.name for one in remotes):
            hint = f"`dmq recipe remote remove {remote.name}` first, or take another name"
            raise RemoteError(f"there is a remote called {remote.name!r} already", hint=hint)
        _write(path, (*remotes, remote))


def remove_remote(path: Path, name: str) -> Remote:
    """Take a remote off the list; raises RemoteError if there is none of that name."""
    with lock_beside(path, "another process is changing the list of remotes"):
        remotes = read_remotes(path)
        found = find_remote(remotes, name)
        _write(path, tuple(remote for remote in remotes if remote is not found))
    return found


def find_remote(remotes: tuple[Remote, ...], name: str) -> Remote:
    """The remote called `name`; raises RemoteError with the names that there are."""
    names = [remote.name for remote in remotes]
    if name not in names:
        known = f"known: {', '.join(names)}" if names else "`dmq recipe remote add NAME ADDRESS` adds one"
        raise RemoteError(f"there is no remote called {name[:60]!r}", hint=did_you_mean(name, names) or known)
    return remotes[names.index(name)]


def check_name(name: str) -> str:
    """`name`, if a remote can have it; raises RemoteError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _TAKEN:
        hint = f"small letters, digits, '-' and '_', at most 32; not {', '.join(_TAKEN)}"
        raise RemoteError(f"a remote cannot be called {str(name)[:60]!r}", hint=hint)
    return name


def _write(path: Path, remotes: tuple[Remote, ...]) -> None:
    rows = [
        {"name": remote.name, "address": remote.address.text, "require_signed": remote.require_signed}
        for remote in remotes
    ]
    write_atomically(path, (json.dumps({"format": FORMAT, "remotes": rows}, indent=1) + "\n").encode())


@contextmanager
def lock_beside(path: Path, taken: str) -> Iterator[None]:
    """One process at a time changes what is at `path`. Raises RemoteError, which says `taken` after a while."""
    lock = FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RemoteError(taken, where=str(path)) from None
    except OSError as error:
        raise RemoteError(f"cannot write the file: {error.strerror}", where=str(path)) from None
    try:
        yield
    finally:
        lock.release()
