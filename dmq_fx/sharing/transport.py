"""Read files of a remote through fsspec: so many bytes at most, in so much time at most."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from dmq_fx.errors import RemoteError
from dmq_fx.sharing.address import LOOPBACK, Address, redact

T = TypeVar("T")

SECONDS = 30.0
"""Time that one file may take, with everything that is tried again."""

ATTEMPTS = 3
_CHUNK = 65536
_EXTRA = {"hf": "huggingface_hub", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class Session(Protocol):
    """A remote that files are read from."""

    def read(self, path: str, limit: int) -> bytes:
        """The file at `path`, at most `limit` bytes. Raises FileNotFoundError, or RemoteError for all else."""
        ...

    def close(self) -> None: ...


class FilesystemSession:
    """A remote behind one of fsspec's file systems."""

    def __init__(self, address: Address, seconds: float = SECONDS) -> None:
        self._address = address
        self._seconds = seconds
        self._filesystem: Any = None

    def read(self, path: str, limit: int) -> bytes:
        url = f"{self._address.url}/{path}"
        deadline = time.monotonic() + self._seconds
        for attempt in range(ATTEMPTS):
            try:
                return _within(deadline - time.monotonic(), lambda: self._read(url, limit, deadline))
            except (RemoteError, FileNotFoundError):
                raise
            except (TimeoutError, asyncio.TimeoutError):
                raise RemoteError(f"not read within {self._seconds:g} s", where=redact(url)) from None
            except ImportError as error:
                package = _EXTRA.get(self._address.protocol)
                hint = f"pip install {package}" if package else "pip install 'dmq-fx[remotes]'"
                raise RemoteError(f"{self._address.protocol} needs another package: {error}", hint=hint) from error
            except Exception as error:  # whatever a file system's libraries raise
                status = getattr(error, "status", 500)
                last = attempt == ATTEMPTS - 1 or time.monotonic() > deadline
                if last or isinstance(error, PermissionError) or (isinstance(status, int) and status < 500):
                    reason = redact(str(error).strip() or type(error).__name__).splitlines()[0][:200]
                    raise RemoteError(f"cannot be read: {reason}", where=redact(url)) from None
                time.sleep(min(0.2 * 2**attempt, max(0.0, deadline - time.monotonic())))
        raise RemoteError("cannot be read in time", where=redact(url))

    def close(self) -> None:
        self._filesystem = None

    def _read(self, url: str, limit: int, deadline: float) -> bytes:
        with self._open(url, limit) as stream:
            self._check_where_it_led(stream, url)
            parts: list[bytes] = []
            size = 0
            while chunk := stream.read(min(_CHUNK, limit + 1 - size)):
                parts.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise RemoteError(f"the file is larger than the {limit:,} bytes that it should have", where=url)
                if time.monotonic() > deadline:
                    raise RemoteError(f"not read within {self._seconds:g} s", where=url)
            return b"".join(parts)

    def _open(self, url: str, limit: int) -> Any:
        filesystem = self._open_filesystem()
        if self._address.protocol in ("http", "https"):
            # a stream: fsspec would else ask for the size, and take an answer without a range as a whole
            return filesystem.open(url, "rb", block_size=0, size=1, headers={"Accept-Encoding": "identity"})
        found = filesystem.info(url)
        if found.get("type") != "file":
            raise FileNotFoundError(url)
        size = found.get("size")
        if isinstance(size, int) and size > limit:
            raise RemoteError(f"the file is larger than the {limit:,} bytes that it should have", where=url)
        return filesystem.open(url, "rb")

    def _open_filesystem(self) -> Any:
        if self._filesystem is None:
            import fsspec

            protocol = self._address.protocol
            options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
            if protocol in ("http", "https"):
                import aiohttp

                timeout = aiohttp.ClientTimeout(total=self._seconds)
                # trust_env: .netrc and proxies. What comes is counted as it comes: nothing is unpacked
                options["client_kwargs"] = {"timeout": timeout, "trust_env": True, "auto_decompress": False}
            self._filesystem = fsspec.filesystem(protocol, **options)
        return self._filesystem

    def _check_where_it_led(self, stream: Any, url: str) -> None:
        """No redirect on the way may lead to http; only an address of this machine may lead to this machine's http."""
        response = getattr(stream, "r", None)
        if response is None:
            return
        allowed = LOOPBACK if self._address.protocol == "http" else ()
        steps = [step.url for step in (*response.history, response)]
        if any(step.scheme != "https" and step.host not in allowed for step in steps):
            raise RemoteError("the server redirects to http, which can be changed on the way", where=redact(url))


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises, TimeoutError if that takes longer.

    It runs in a thread that the program does not wait for.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    if failure:
        raise failure[0]
    with suppress(IndexError):
        return result[0]
    raise TimeoutError
