"""The recipe library that is installed with dmq: one file a version, `family/name@version.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from packaging.version import InvalidVersion, Version

from dmq_fx.errors import InternalError, RecipeError, did_you_mean
from dmq_fx.recipe.versions import parse_reference

PACKAGE = "dmq_fx.recipes"


@dataclass(frozen=True)
class LibraryRecipe:
    """A recipe of the library: its name, version and file."""

    name: str
    version: Version
    path: Path

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


def list_recipes() -> tuple[LibraryRecipe, ...]:
    """All recipes of the library, by name and then by version."""
    root = Path(str(files(PACKAGE)))
    found = [_entry(root, path) for path in root.glob("*/**/*.yaml")]
    return tuple(sorted(found, key=lambda recipe: (recipe.name, recipe.version)))


def find_recipe(reference: str, *, where: str | None = None) -> LibraryRecipe:
    """The newest recipe of the library that `reference` (`ptq/w8a8`, `ptq/w8a8@^1`) allows.

    Raises RecipeError, placed at `where`, with the closest names or the versions there are.
    """
    wanted = parse_reference(reference, where)
    recipes = list_recipes()
    versions = {recipe.version: recipe for recipe in recipes if recipe.name == wanted.name}
    if not versions:
        names = sorted({recipe.name for recipe in recipes})
        hint = did_you_mean(wanted.name, names) or f"the library has: {', '.join(names)}"
        raise RecipeError(f"the library has no recipe {wanted.name!r}", where=where, hint=hint)
    newest = wanted.newest(list(versions))
    if newest is None:
        known = ", ".join(str(version) for version in sorted(versions))
        message = f"the library has no version {wanted.wanted} of {wanted.name!r}"
        raise RecipeError(message, where=where, hint=f"it has: {known}")
    return versions[newest]


def _entry(root: Path, path: Path) -> LibraryRecipe:
    name, _, version = path.stem.partition("@")
    try:
        folder = path.parent.relative_to(root).as_posix()
        return LibraryRecipe(f"{folder}/{name}", Version(version), path)
    except InvalidVersion:
        raise InternalError(
            "a file of the library is not called name@version.yaml", where=str(path.relative_to(root))
        ) from None
