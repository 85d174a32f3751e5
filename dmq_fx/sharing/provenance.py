"""What an artifact says of its recipe, computed again; and whether a recipe still resolves to its lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmq_fx.artifact.container import read_manifest, verify_files
from dmq_fx.errors import ArtifactError, DmqError, RecipeError
from dmq_fx.recipe import LOCK_NAME, ResolvedRecipe, resolve
from dmq_fx.recipe.keys import to_plain
from dmq_fx.recipe.language import Parent
from dmq_fx.recipe.library import FILE, Library, LibraryRecipe
from dmq_fx.recipe.source import read_bytes
from dmq_fx.recipe.versions import parse_reference
from dmq_fx.sharing.cache import sha256_of

SAME, DIFFERS, NOT_HERE = "same", "differs", "not here"


@dataclass(frozen=True)
class Ancestor:
    """A recipe that an artifact was made from. found: whether the one of this name and version here is the same."""

    recipe: Parent
    found: str
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**to_plain(self.recipe), "found": self.found, "why": self.why}


@dataclass(frozen=True)
class Provenance:
    """What was checked. files: of the artifact; digest: of its recipe; ancestors: the recipe's file and its parents."""

    artifact: str
    name: str
    version: str
    digest: str
    files: int
    ancestors: tuple[Ancestor, ...]

    @property
    def ok(self) -> bool:
        """Nothing differs. What is not here was not compared."""
        return all(ancestor.found != DIFFERS for ancestor in self.ancestors)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "ancestors": [one.to_json() for one in self.ancestors], "ok": self.ok}


def verify_artifact(path: Path, *, library: Library, pass_options: Mapping[str, type]) -> Provenance:
    """Compute every digest of the artifact at `path` again: of its files, of its recipe, of the recipes that it names.

    Raises ArtifactError or RecipeError for what does not agree; recipes that differ from those here are listed.
    """
    manifest = read_manifest(path)
    verify_files(path, manifest)
    if manifest.record(LOCK_NAME) is None:
        raise ArtifactError(f"the artifact has no {LOCK_NAME}", where=str(path), hint="compile the recipe again")
    resolved = resolve(path / LOCK_NAME, pass_options=pass_options)
    says = manifest.content.get("recipe")
    if not isinstance(says, dict):
        raise ArtifactError("the manifest does not say which recipe made the artifact", where=str(path))
    own = {"name": resolved.recipe.name, "version": resolved.recipe.version, "digest": resolved.digest}
    for key, value in own.items():
        if says.get(key) != value:
            message = f"the manifest and the lock disagree: {key} {str(says.get(key))[:64]!r} and {value!r}"
            raise ArtifactError(message, where=str(path))
    named = (*((resolved.file,) if resolved.file else ()), *resolved.parents)
    ancestors = tuple(_ancestor(recipe, library) for recipe in named)
    return Provenance(str(path), own["name"], own["version"], resolved.digest, len(manifest.files), ancestors)


def lock_differences(resolved: ResolvedRecipe, locked: ResolvedRecipe) -> list[str]:
    """What is not as in the lock, a line each; nothing if the recipe resolves to what was locked."""
    lines = []
    if resolved.digest != locked.digest:
        lines += [
            f"{path}: {ours!r}, locked {theirs!r}"
            for path, ours, theirs in _changed(resolved.document, locked.document)
        ][:10] or [f"digest {resolved.digest[:12]}…, locked {locked.digest[:12]}…"]
    ours, theirs = resolved.parents, locked.parents
    if resolved.file and locked.file:
        ours, theirs = (resolved.file, *ours), (locked.file, *theirs)
    for recipe in theirs:
        now = next((one for one in ours if one.name == recipe.name), None)
        if now is None:
            lines.append(f"{recipe.name}@{recipe.version} is no longer used")
        elif (now.version, now.sha256) != (recipe.version, recipe.sha256):
            what = f"{now.name}@{now.version} ({now.sha256[:12]}…)"
            lines.append(f"{what}, locked {recipe.version} ({recipe.sha256[:12]}…)")
    known = {recipe.name for recipe in theirs}
    lines += [f"{one.name}@{one.version} is new" for one in ours if one.name not in known]
    return lines


def check_locked(resolved: ResolvedRecipe, lock: Path, pass_options: Mapping[str, type]) -> None:
    """Raise RecipeError if `resolved` is not what the lock at `lock` holds."""
    if not lock.is_file():
        hint = f"`dmq recipe lock RECIPE -o {lock.name}` writes it"
        raise RecipeError("--locked needs a lock, and there is none", where=str(lock), hint=hint)
    locked = resolve(lock, pass_options=pass_options)
    lines = lock_differences(resolved, locked)
    if lines:
        hint = "`dmq recipe lock` writes a new lock if that is meant; compile the lock itself to get what it holds"
        raise RecipeError(
            "the recipe resolves to something else than its lock:\n  " + "\n  ".join(lines), where=str(lock), hint=hint
        )


def _ancestor(recipe: Parent, library: Library) -> Ancestor:
    if recipe.origin == FILE:
        return Ancestor(recipe, NOT_HERE, "it was a file, not a recipe of a library")
    try:
        found: LibraryRecipe = library.find(parse_reference(f"{recipe.name}@{recipe.version}"))
        digest = sha256_of(read_bytes(found.path))
    except DmqError as error:
        return Ancestor(recipe, NOT_HERE, error.message.splitlines()[0])
    if digest == recipe.sha256:
        return Ancestor(recipe, SAME)
    return Ancestor(recipe, DIFFERS, f"here it has the SHA-256 {digest[:12]}…, not {recipe.sha256[:12]}…")


def _changed(ours: Any, theirs: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Places where two documents differ: path, our value, their value."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = dict.fromkeys([*ours, *theirs])
        return [row for key in keys for row in _changed(ours.get(key), theirs.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [row for k, pair in enumerate(zip(ours, theirs, strict=True)) for row in _changed(*pair, f"{path}.{k}")]
    return [] if ours == theirs else [(path, ours, theirs)]
