"""All places where a recipe's name is looked up, in order: dmq's own library, the user's, then the remotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from packaging.version import Version

from dmq_fx.errors import DmqError, RecipeError, SignatureError, did_you_mean
from dmq_fx.recipe.library import FILE, NO_VERSION, LibraryRecipe, list_folder, list_recipes, newest
from dmq_fx.recipe.source import read_bytes
from dmq_fx.recipe.versions import Reference
from dmq_fx.sharing import signing
from dmq_fx.sharing.cache import RecipeCache, sha256_of
from dmq_fx.sharing.index import Entry
from dmq_fx.sharing.opened import OpenRemote
from dmq_fx.sharing.places import Places, user_places
from dmq_fx.sharing.remotes import Remote, find_remote, read_remotes

USER = "user library"


@dataclass(frozen=True)
class Listed:
    """A recipe that can be had, before its file is read. place: library, user or the name of a remote."""

    name: str
    version: Version
    place: str
    sha256: str | None = None
    summary: str = ""
    path: Path | None = None

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


class SharedLibrary:
    """Finds recipes by name in all places. The first place that has a version that will do gives its newest one.

    So a remote cannot put itself in front of a recipe that comes with dmq. offline: nothing leaves the machine.
    require_signed: every file but dmq's own must have a signature by a key of `trusted`.
    """

    def __init__(
        self,
        places: Places | None = None,
        *,
        offline: bool = False,
        require_signed: bool = False,
        trusted: Path | None = None,
        only: str | None = None,
    ) -> None:
        self.places = places or user_places()
        self.trusted = trusted or self.places.trusted
        self.require_signed = require_signed
        self._cache = RecipeCache(self.places.cache)
        remotes = read_remotes(self.places.remotes)
        chosen = remotes if only is None else (find_remote(remotes, only),)
        self.remotes = tuple(OpenRemote(remote, self._cache, offline=offline) for remote in chosen)
        self._only = only

    def __enter__(self) -> SharedLibrary:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove what remotes that are read keep on disk; the library can be used again."""
        for remote in self.remotes:
            remote.close()

    def find(self, reference: Reference, where: str | None = None) -> LibraryRecipe:
        """The recipe that `reference` names. Raises RecipeError, RemoteError, SignatureError."""
        for recipes in self._folders():
            if _newest(reference, [recipe.version for recipe in recipes if recipe.name == reference.name]) is not None:
                found = newest(reference, recipes, where)
                return found if found.origin is None else self._opened(found)
        for remote in self.remotes:
            if remote.is_unknown:
                continue
            entry = self._kept(reference, remote) or choose(reference, remote.index())
            if entry is not None:
                return self._fetched(remote, entry)
        raise self._nowhere(reference, where)

    def open(self, path: Path) -> LibraryRecipe:
        """The recipe file at `path`; with `require_signed`, its signature beside it is checked."""
        return self._opened(LibraryRecipe("", NO_VERSION, path, FILE))

    def listed(self) -> tuple[list[Listed], list[DmqError]]:
        """Every recipe of every place, and what went wrong with remotes that could not be read."""
        rows: list[Listed] = []
        for place, recipes in zip(("library", "user"), self._folders() if self._only is None else (), strict=False):
            rows += [Listed(one.name, one.version, place, path=one.path) for one in recipes]
        failures: list[DmqError] = []
        for remote in self.remotes:
            try:
                rows += [_listed(entry, remote.remote) for entry in remote.index()]
            except DmqError as error:
                failures.append(error)
        return rows, failures

    def _folders(self) -> tuple[Sequence[LibraryRecipe], ...]:
        if self._only is not None:
            return ()
        return (list_recipes(), list_folder(self.places.library, USER))

    def _kept(self, reference: Reference, remote: OpenRemote) -> Entry | None:
        """An exact version that was fetched needs no network: it cannot have become another recipe."""
        if not reference.is_exact:
            return None
        entry = choose(reference, remote.known())
        return entry if entry is not None and self._cache.get(entry.sha256) else None

    def _fetched(self, remote: OpenRemote, entry: Entry) -> LibraryRecipe:
        path = remote.fetch(entry)
        if self.require_signed or remote.remote.require_signed:
            remote.signer(entry, self.trusted)
        return LibraryRecipe(entry.name, Version(entry.version), path, remote.origin, entry.sha256, is_remote=True)

    def _opened(self, recipe: LibraryRecipe) -> LibraryRecipe:
        if not self.require_signed:
            return recipe
        data = read_bytes(recipe.path)
        signature = recipe.path.with_name(recipe.path.name + signing.SUFFIX)
        if not signature.is_file() or signature.stat().st_size > signing.BYTES_LIMIT:
            raise SignatureError("not signed", where=str(recipe.path), hint="`dmq recipe sign FILE --key KEY` signs it")
        signing.verify(data, signature.read_bytes(), self.trusted, str(recipe.path))
        return LibraryRecipe(recipe.name, recipe.version, recipe.path, recipe.origin, sha256_of(data))

    def _nowhere(self, reference: Reference, where: str | None) -> RecipeError:
        rows, failures = self.listed()
        if failures:
            raise failures[0]
        versions = [f"{row.version} ({row.place})" for row in rows if row.name == reference.name]
        what = "the remote" if self._only else "the library"
        if versions:
            message = f"{what} has no version {reference.wanted} of {reference.name!r}"
            return RecipeError(message, where=where, hint=f"it has: {', '.join(versions[-20:])}")
        names = sorted({row.name for row in rows})
        hint = did_you_mean(reference.name, names) or f"`dmq recipe list` shows all {len(names)}"
        return RecipeError(f"{what} has no recipe {reference.name!r}", where=where, hint=hint)


def choose(reference: Reference, entries: Sequence[Entry]) -> Entry | None:
    """The newest entry that `reference` allows, whatever their order; None if none does."""
    versions = {Version(entry.version): entry for entry in entries if entry.name == reference.name}
    found = _newest(reference, list(versions))
    return None if found is None else versions[found]


def _newest(reference: Reference, versions: list[Version]) -> Version | None:
    return reference.newest(versions) if versions else None


def _listed(entry: Entry, remote: Remote) -> Listed:
    return Listed(entry.name, Version(entry.version), remote.name, entry.sha256, entry.summary)
