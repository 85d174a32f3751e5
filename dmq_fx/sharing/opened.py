"""A remote that is being read: its index, its recipes and their signatures, each checked when it comes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from packaging.version import Version

from dmq_fx.errors import RemoteError, SignatureError
from dmq_fx.sharing import signing
from dmq_fx.sharing.cache import RecipeCache, sha256_of, write_atomically
from dmq_fx.sharing.git import GitSession
from dmq_fx.sharing.index import BYTES_LIMIT, INDEX_NAME, Entry, parse_index
from dmq_fx.sharing.remotes import Remote
from dmq_fx.sharing.transport import FilesystemSession, Session


class OpenRemote:
    """One remote; its index is read at most once. offline: what was fetched before, unless it is a local folder."""

    def __init__(self, remote: Remote, cache: RecipeCache, *, offline: bool = False) -> None:
        self.remote = remote
        self._cache = cache
        self._offline = offline and not remote.address.is_local
        self._session: Session | None = None
        self._index: tuple[Entry, ...] | None = None

    @property
    def origin(self) -> str:
        """What a lock says of it; the same whether or not a recipe came from the cache."""
        return self.remote.address.origin(self.remote.name)

    @property
    def is_unknown(self) -> bool:
        """Offline, and nothing was fetched from it yet."""
        return self._offline and not self.known()

    def index(self) -> tuple[Entry, ...]:
        """The entries of its index, read anew once. Raises RemoteError, also if a version became another recipe."""
        if self._index is None:
            if self._offline:
                self._index = self.known()
                if not self._index:
                    hint = f"`dmq recipe pull NAME --remote {self.remote.name}` while online"
                    raise RemoteError("offline, and nothing was fetched from it yet", where=self._where, hint=hint)
                return self._index
            folder = Path(self.remote.address.url)
            is_folder = self.remote.address.is_local and not self.remote.address.is_git and folder.is_dir()
            if is_folder and not (folder / INDEX_NAME).exists():
                self._index = ()  # nothing was pushed to it yet
                return self._index
            data = self._read(INDEX_NAME, BYTES_LIMIT)
            entries = parse_index(data, self._where)
            self._check_changes(entries)
            write_atomically(self._cache.index_path(self.remote.address.text), data)
            self._index = entries
        return self._index

    def known(self) -> tuple[Entry, ...]:
        """The entries of the index as it was read last, without reading it anew."""
        path = self._cache.index_path(self.remote.address.text)
        try:
            return parse_index(path.read_bytes(), str(path))
        except (OSError, RemoteError):
            return ()

    def fetch(self, entry: Entry) -> Path:
        """The file of a recipe, from the cache if it is there; its size and SHA-256 are those of the index."""
        kept = self._cache.get(entry.sha256)
        if kept is not None:
            return kept
        if self._offline:
            hint = f"`dmq recipe pull {entry.reference}` while online"
            raise RemoteError(f"offline, and {entry.reference} was not pulled", where=self._where, hint=hint)
        data = self._read(entry.path, entry.size)
        if len(data) != entry.size:
            message = f"{entry.reference} is cut short: {len(data):,} of {entry.size:,} bytes came"
            raise RemoteError(message, where=self._where, hint="try again")
        if (digest := sha256_of(data)) != entry.sha256:
            message = f"{entry.reference} is not what the index says: SHA-256 {digest[:12]}…, not {entry.sha256[:12]}…"
            raise RemoteError(message, where=self._where, hint="the remote is damaged, or was tampered with")
        return self._cache.put(data, entry.sha256)

    def signer(self, entry: Entry, trusted: Path) -> str:
        """The name of the trusted key that signed a recipe. Raises SignatureError."""
        where = f"{entry.reference} of {self._where}"
        data = self.fetch(entry).read_bytes()
        kept = self._cache.get(entry.sha256, ".sig")
        if kept is not None:
            with suppress(SignatureError):  # it may have been signed anew
                return signing.verify(data, kept.read_bytes(), trusted, where)
        if not entry.signed:
            raise SignatureError("not signed", where=where, hint="its author signs it with `dmq recipe sign`")
        if self._offline:
            raise SignatureError("offline, and no trusted signature was fetched", where=where)
        signature = self._read(f"{entry.path}{signing.SUFFIX}", signing.BYTES_LIMIT)
        name = signing.verify(data, signature, trusted, where)
        self._cache.put(signature, entry.sha256, ".sig")
        return name

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    @property
    def _where(self) -> str:
        return f"remote {self.remote.name}"

    def _read(self, path: str, limit: int) -> bytes:
        if self._session is None:
            address = self.remote.address
            self._session = GitSession(address) if address.is_git else FilesystemSession(address)
        try:
            return self._session.read(path, limit)
        except FileNotFoundError:
            message = f"there is no {path} at {self.remote.address.text}"
            raise RemoteError(message, where=self._where, hint="is this the address of a remote?") from None

    def _check_changes(self, entries: tuple[Entry, ...]) -> None:
        """A version that was seen once stays what it was."""
        before = {(entry.name, Version(entry.version)): entry for entry in self.known()}
        for entry in entries:
            old = before.get((entry.name, Version(entry.version)))
            if old is not None and old.sha256 != entry.sha256:
                message = (
                    f"{entry.reference} is another recipe than it was: {entry.sha256[:12]}…, not {old.sha256[:12]}…"
                )
                hint = "ask its author; to accept it, remove the remote and add it again"
                raise RemoteError(message, where=self._where, hint=hint)
