"""The recipe library that is installed with dmq: one file a version, `family/name@version.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from packaging.version import InvalidVersion, Version

from dmq_fx.errors import InternalError, RecipeError, did_you_mean
from dmq_fx.recipe.versions import Reference, parse_reference

PACKAGE = "dmq_fx.recipes"
SHOWN = 60
"""Names that an error lists."""


FILE = "file"
"""Origin of a recipe that was named by its path."""

NO_VERSION = Version("0.0.0")


@dataclass(frozen=True)
class LibraryRecipe:
    """A recipe that was found: its name, version and file.

    origin: where a recipe that did not come with dmq is from; a lock says it. sha256: what the file must have.
    is_remote: someone else wrote it, so it names no files of this machine.
    """

    name: str
    version: Version
    path: Path
    origin: str | None = None
    sha256: str | None = None
    is_remote: bool = False

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def called(self) -> str:
        """What an error calls it."""
        return str(self.path) if self.origin == FILE else self.reference


class Library(Protocol):
    """Where references are looked up."""

    def find(self, reference: Reference, where: str | None = None) -> LibraryRecipe:
        """The newest recipe that `reference` allows; raises RecipeError, placed at `where`."""
        ...

    def open(self, path: Path) -> LibraryRecipe:
        """The recipe file at `path`."""
        ...


class BuiltinLibrary:
    """The recipes that come with dmq, and files."""

    def find(self, reference: Reference, where: str | None = None) -> LibraryRecipe:
        return newest(reference, list_recipes(), where)

    def open(self, path: Path) -> LibraryRecipe:
        return LibraryRecipe("", NO_VERSION, path, FILE)


BUILTIN = BuiltinLibrary()


def list_recipes() -> tuple[LibraryRecipe, ...]:
    """All recipes of the library, by name and then by version."""
    return list_folder(Path(str(files(PACKAGE))))


def list_folder(root: Path, origin: str | None = None) -> tuple[LibraryRecipe, ...]:
    """All recipes of a folder that is laid out as the library: `family/name@version.yaml`."""
    found = [_entry(root, path, origin) for path in root.glob("*/**/*.yaml")]
    return tuple(sorted(found, key=lambda recipe: (recipe.name, recipe.version)))


def find_recipe(reference: str, *, where: str | None = None) -> LibraryRecipe:
    """The newest recipe of the library that `reference` (`ptq/w8a8`, `ptq/w8a8@^1`) allows.

    Raises RecipeError, placed at `where`, with the closest names or the versions there are.
    """
    return BUILTIN.find(parse_reference(reference, where), where)


def newest(
    wanted: Reference, recipes: Sequence[LibraryRecipe], where: str | None = None, place: str = "the library"
) -> LibraryRecipe:
    """The newest of `recipes` that `wanted` allows; whatever their order, the same one.

    Raises RecipeError, placed at `where`, with the closest names or the versions there are.
    """
    versions = {recipe.version: recipe for recipe in reversed(recipes) if recipe.name == wanted.name}
    if not versions:
        names = sorted({recipe.name for recipe in recipes})
        hint = did_you_mean(wanted.name, names) or f"{place} has: {', '.join(names[:SHOWN])}"
        raise RecipeError(f"{place} has no recipe {wanted.name!r}", where=where, hint=hint)
    found = wanted.newest(list(versions))
    if found is None:
        known = ", ".join(str(version) for version in sorted(versions))
        message = f"{place} has no version {wanted.wanted} of {wanted.name!r}"
        raise RecipeError(message, where=where, hint=f"it has: {known}")
    return versions[found]


def _entry(root: Path, path: Path, origin: str | None) -> LibraryRecipe:
    name, _, version = path.stem.partition("@")
    try:
        folder = path.parent.relative_to(root).as_posix()
        return LibraryRecipe(f"{folder}/{name}", Version(version), path, origin)
    except InvalidVersion:
        kind = InternalError if origin is None else RecipeError
        raise kind("a file of the library is not called name@version.yaml", where=str(path)) from None
