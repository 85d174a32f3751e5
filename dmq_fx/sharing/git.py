"""Read files of a git repository at one commit, without a working tree.

Only `git fetch` of one commit into a new bare repository and `git cat-file` run: nothing is checked out, so no hook,
filter, submodule or link of the repository has an effect. Addresses were checked (`address.py`); git is also told which
protocols it may use, and that options have ended.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from dmq_fx.errors import RemoteError
from dmq_fx.sharing.address import Address, redact

SECONDS = 120.0
BYTES_LIMIT = 200_000_000
"""Of the fetched repository on disk."""

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SAFE = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.symlinks=false",
    "fetch.fsckObjects=true",
    "submodule.recurse=false",
    "maintenance.auto=false",
    "protocol.allow=never",
)


class GitSession:
    """A git repository at a tag or commit, fetched when the first file is read. `commit`: what it was."""

    def __init__(self, address: Address, seconds: float = SECONDS, bytes_limit: int = BYTES_LIMIT) -> None:
        self._address = address
        self._seconds = seconds
        self._bytes_limit = bytes_limit
        self._folder: Path | None = None
        self.commit: str | None = None

    def read(self, path: str, limit: int) -> bytes:
        commit = self._fetch()
        name = f"{commit}:{self._address.subfolder + '/' if self._address.subfolder else ''}{path}"
        try:
            kind = self._git("cat-file", "-t", name).strip()
            size = int(self._git("cat-file", "-s", name))
        except RemoteError:
            raise FileNotFoundError(path) from None
        if kind != b"blob":
            raise FileNotFoundError(path)
        if size > limit:
            message = f"the file is larger than the {limit:,} bytes that it should have"
            raise RemoteError(message, where=f"{self._address.text}: {path}")
        return self._git("cat-file", "blob", name)

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self.commit = None

    def _fetch(self) -> str:
        if self.commit is None:
            self._folder = Path(tempfile.mkdtemp(prefix="dmq-git-"))
            revision = self._address.revision or ""
            self._git("init", "-q", "--bare")
            flags = ("--depth=1", "--no-tags", "--no-recurse-submodules", "--quiet")
            self._git("fetch", *flags, "--", self._address.url, revision)
            commit = self._git("rev-parse", "--verify", "--end-of-options", "FETCH_HEAD^{commit}").decode().strip()
            if _COMMIT.fullmatch(revision) and commit != revision:
                raise RemoteError(f"the repository gave the commit {commit[:12]}… instead", where=self._address.text)
            self.commit = commit
        return self.commit

    def _git(self, *arguments: str) -> bytes:
        """Run git in the repository; ended when it takes too long or too much room."""
        assert self._folder is not None
        settings = [*_SAFE, f"protocol.{self._address.protocol}.allow=always"]
        command = ["git", *(word for setting in settings for word in ("-c", setting)), *arguments]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -oBatchMode=yes", "LC_ALL": "C"}
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as messages:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self._folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=messages,
                    start_new_session=True,
                )
            except FileNotFoundError:
                raise RemoteError("git is not installed", where=self._address.text) from None
            try:
                self._watch(process)
            finally:
                _end(process)
            if process.returncode:
                messages.seek(0)
                lines = redact(messages.read(4000).decode("utf-8", "replace")).strip().splitlines()
                reason = lines[-1][:200] if lines else f"exit code {process.returncode}"
                raise RemoteError(f"git {arguments[0]} failed: {reason}", where=self._address.text)
            output.seek(0)
            return output.read()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._seconds
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise RemoteError(f"git did not end within {self._seconds:g} s", where=self._address.text)
            if self._folder is not None and _size(self._folder) > self._bytes_limit:
                message = f"the repository is larger than {self._bytes_limit:,} bytes"
                raise RemoteError(message, where=self._address.text)
            time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End git and what it started; its group is its own."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118
            except OSError:
                continue
    return total
