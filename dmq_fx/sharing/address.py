"""Addresses of remotes: which are allowed, and what of them may be shown or kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from dmq_fx.errors import RemoteError

PROTOCOLS = ("file", "https", "http", "hf", "s3", "gs", "gcs", "az", "abfs", "github")
"""Of fsspec's, those that name a store of files. Others chain, unpack archives, run programs or read references."""

GIT_PROTOCOLS = ("https", "ssh", "file", "http")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_LONGEST = 1000
_PLAIN = re.compile(r"[!-~]+")  # printable ASCII, no spaces
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_GITHUB = re.compile(r"github://[\w.-]+:[\w.-]+(@[\w.-]+)?(/[\w./-]*)?", re.ASCII)
_SUBFOLDER = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_SECRETS = re.compile(r"(?<=://)(?:[^/\s'\"]*@|[^/@:\[\s'\"]*:(?![0-9]*/)[^@\s'\"]*@)")  # a password may have / and @
_QUERY = re.compile(r"(://[^\s'\"?]*)\?[^\s'\"]*")


@dataclass(frozen=True)
class Address:
    """A checked address. text: as it is kept and shown; url: what fsspec or git is given; revision: of git."""

    text: str
    protocol: str
    url: str
    revision: str | None = None
    subfolder: str = ""

    @property
    def is_git(self) -> bool:
        return self.revision is not None

    @property
    def is_local(self) -> bool:
        """Reading it does not leave the machine."""
        return self.protocol == "file"

    def origin(self, name: str) -> str:
        """What a lock says of the remote called `name`: its address, but no path of this machine."""
        return f"remote {name}" if self.is_local else self.text


def parse_address(text: str) -> Address:
    """An address from the command line or the configuration; a path of this machine becomes a `file://` address.

    Raises RemoteError, whose message does not repeat a password.
    """
    if "://" not in text and "::" not in text and not text.startswith("git+"):
        return _local(Path(text).expanduser())
    shown = redact(text)[:200]
    if len(text) > _LONGEST or not _PLAIN.fullmatch(text):
        raise RemoteError("an address is at most 1,000 printable characters without spaces", where=repr(shown))
    if "::" in text.replace("[::1]", ""):
        raise RemoteError("a remote is one address: chained ones (`::`) are not read", where=shown)
    if text.startswith("git+"):
        return _git(text, shown)
    if _GITHUB.fullmatch(text) and ".." not in text.split("/"):
        return Address(text.rstrip("/"), "github", text.rstrip("/"))
    parts = _split(text, shown)
    if parts.scheme not in PROTOCOLS:
        hint = f"known: {', '.join(PROTOCOLS)}, and git+https, git+ssh, git+file"
        raise RemoteError(f"remotes are not read from {parts.scheme!r} addresses", where=shown, hint=hint)
    _check(parts, shown, user_allowed=False)
    if parts.fragment:
        raise RemoteError("an address of files has no fragment", where=shown)
    if parts.scheme == "file":
        return _local(Path(unquote(parts.path)))
    return Address(text.rstrip("/"), parts.scheme, text.rstrip("/"))


def redact(text: str) -> str:
    """`text` without user names, passwords and queries of addresses: for messages of other libraries."""
    return _QUERY.sub(r"\1?***", _SECRETS.sub("***@", text))


def _local(path: Path) -> Address:
    if "\0" in str(path):
        raise RemoteError("a path holds no NUL character", where=repr(str(path))[:200])
    if not path.is_absolute():
        path = Path.cwd() / path
    return Address(path.as_uri(), "file", str(path))


def _git(text: str, shown: str) -> Address:
    base, _, fragment = text.removeprefix("git+").partition("#")
    url, at, revision = base.rpartition("@")
    if not at or "/" not in url.partition("://")[2] or "://" in revision:
        hint = "say which: git+https://HOST/REPOSITORY.git@TAG, or a commit; #subdirectory=FOLDER may follow"
        raise RemoteError("a git remote is one tag or commit", where=shown, hint=hint)
    parts = _split(url, shown)
    if parts.scheme not in GIT_PROTOCOLS:
        hint = f"known: {', '.join('git+' + one for one in GIT_PROTOCOLS)}"
        raise RemoteError(f"git repositories are not read from {parts.scheme!r} addresses", where=shown, hint=hint)
    _check(parts, shown, user_allowed=parts.scheme == "ssh")
    if (parts.hostname or "").startswith("-") or (parts.username or "").startswith("-"):
        raise RemoteError("the name of a host or user does not begin with '-'", where=shown)
    if not _REVISION.fullmatch(revision) or ".." in revision or revision.endswith((".lock", "/", ".")):
        raise RemoteError(f"{revision[:60]!r} is not the name of a tag or commit", where=shown)
    subfolder = fragment.removeprefix("subdirectory=") if fragment else ""
    wrong = fragment and not fragment.startswith("subdirectory=")
    if wrong or (subfolder and (not _SUBFOLDER.fullmatch(subfolder) or ".." in subfolder.split("/"))):
        raise RemoteError("after `#` comes `subdirectory=FOLDER`", where=shown)
    return Address(text, parts.scheme, url, revision, subfolder)


def _split(text: str, shown: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:  # its text may hold a part of a password
        raise RemoteError("not an address: its host or its port is not one", where=shown) from None
    return parts


def _check(parts: SplitResult, shown: str, *, user_allowed: bool) -> None:
    if parts.password is not None or (parts.username is not None and not user_allowed):
        hint = "credentials stay where the protocol keeps them: .netrc, git's credential helper, the cloud's own login"
        raise RemoteError("an address holds no user name and no password", where=shown, hint=hint)
    if parts.query:
        raise RemoteError("an address of a remote has no query", where=shown, hint="it may hold a secret; leave it out")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise RemoteError("a file address names no host", where=shown, hint="write file:///absolute/path")
    elif not parts.hostname:
        raise RemoteError("the address names no host", where=shown)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise RemoteError("http can be changed on the way", where=shown, hint="use https")
    if any(step in (".", "..") for step in unquote(parts.path).split("/")):
        raise RemoteError("an address has no '..' in it", where=shown)
