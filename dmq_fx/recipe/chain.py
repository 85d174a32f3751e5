"""A recipe file and the files it extends, each one checked by itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.build import build
from dmq_fx.recipe.checks import Checker
from dmq_fx.recipe.digest import document_digest
from dmq_fx.recipe.language import Lock, Parent
from dmq_fx.recipe.library import LibraryRecipe, find_recipe
from dmq_fx.recipe.source import Source, read_source
from dmq_fx.recipe.tree import Node

DEPTH_LIMIT = 16
"""Recipes that extend one another."""

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class RecipeFile:
    """A file of a chain: its tree in normal form (without defaults, `extends` and `lock`) and who it is."""

    file: str
    tree: Node
    identity: Parent
    lock: Lock | None


def read_chain(reference: str | Path, checker: Checker) -> tuple[RecipeFile, ...]:
    """The recipe that `reference` names and its parents, nearest first.

    A reference is a path (a Path, text that ends in .yaml or .yml, or the name of a file that exists) or the name of
    a library recipe. Every file is checked before its parent is read.
    """
    text = str(reference)
    is_path = isinstance(reference, Path) or text.endswith(_SUFFIXES) or _is_file(Path(text))
    found = Path(reference) if is_path else find_recipe(text)
    chain: list[RecipeFile] = []
    seen: dict[str, str] = {}
    while True:
        path = found.path if isinstance(found, LibraryRecipe) else found
        seen[_identity(path)] = found.reference if isinstance(found, LibraryRecipe) else str(path)
        source = read_source(path)
        file, extends = _check_file(source, checker)
        chain.append(file)
        if isinstance(found, LibraryRecipe):
            _check_library_name(file, found)
        if extends is None:
            return tuple(chain)
        found = _parent(extends, path)
        _check_ancestry(found, extends, seen)


def _check_file(source: Source, checker: Checker) -> tuple[RecipeFile, Node | None]:
    tree = checker.check_file(source.tree, source.file)
    extends, lock_node = tree.get("extends"), tree.get("lock")
    if extends and lock_node:
        raise RecipeError("a lock holds the whole recipe and extends nothing", where=str(extends.where))
    lock = build(lock_node, Lock, {}) if lock_node else None
    if lock_node and lock:
        digest = document_digest(source.tree.plain())
        if digest != lock.sha256:
            message = f"the lock was edited: its recipe has the SHA-256 {digest[:12]}…, and it says {lock.sha256[:12]}…"
            hint = "use --set to change a locked recipe, or remove the `lock:` block to make it a recipe of your own"
            raise RecipeError(message, where=str(lock_node.where), hint=hint)
    plain = tree.without("extends", "lock")
    version = plain.get("version")
    identity = Parent(
        name=plain.at(["name"]).value, version=version.value if version else "0.0.0", sha256=source.sha256
    )
    return RecipeFile(source.file, plain, identity, lock), extends


def _check_library_name(file: RecipeFile, found: LibraryRecipe) -> None:
    says = f"{file.identity.name}@{file.identity.version}"
    if (file.identity.name, Version(file.identity.version)) != (found.name, found.version):
        raise RecipeError(f"the file calls itself {says}, and the library {found.reference}", where=file.file)


def _parent(extends: Node, child: Path) -> Path | LibraryRecipe:
    """What `extends` names: a path, relative to the child's folder, or a library recipe."""
    text = extends.value
    if text.endswith(_SUFFIXES) or text.startswith((".", "/")):
        path = child.parent / text
        if not _is_file(path):
            raise RecipeError(f"there is no file {str(path)!r} to extend", where=str(extends.where))
        return path
    return find_recipe(text, where=str(extends.where))


def _check_ancestry(found: Path | LibraryRecipe, extends: Node, seen: dict[str, str]) -> None:
    path = found.path if isinstance(found, LibraryRecipe) else found
    chain = [*seen.values(), found.reference if isinstance(found, LibraryRecipe) else str(path)]
    if _identity(path) in seen:
        raise RecipeError(f"recipes extend one another in a circle: {' -> '.join(chain)}", where=str(extends.where))
    if len(chain) > DEPTH_LIMIT:
        message = f"more than {DEPTH_LIMIT} recipes extend one another: {' -> '.join(chain)}"
        raise RecipeError(message, where=str(extends.where))


def _identity(path: Path) -> str:
    return os.path.realpath(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
