"""A recipe file and the files it extends, each one checked by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import Version

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.build import build
from dmq_fx.recipe.checks import Checker
from dmq_fx.recipe.digest import document_digest
from dmq_fx.recipe.language import Lock, Parent
from dmq_fx.recipe.library import BUILTIN, FILE, Library, LibraryRecipe
from dmq_fx.recipe.linearize import linearize
from dmq_fx.recipe.merge import merge_values
from dmq_fx.recipe.overlays import Overlay, overlays_of
from dmq_fx.recipe.params import has_placeholders, param_values, substitute
from dmq_fx.recipe.problems import Problem
from dmq_fx.recipe.source import Source, read_source
from dmq_fx.recipe.tree import Node
from dmq_fx.recipe.versions import parse_reference

DEPTH_LIMIT = 16
"""Recipes that extend one another."""

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class RecipeFile:
    """A file of a chain: its tree in normal form, without defaults and keys of a file alone, and who it is."""

    file: str
    tree: Node
    identity: Parent
    lock: Lock | None
    overlays: tuple[Overlay, ...] = ()


@dataclass(frozen=True)
class Chain:
    """A recipe and its parents, nearest first, with the values of its parameters put in."""

    files: tuple[RecipeFile, ...]
    params: Mapping[str, Any]


@dataclass
class _Read:
    """A file as it was read. tree: once it is checked; parents: paths, the one that stands over the others first."""

    found: LibraryRecipe
    source: Source
    tree: Node | None
    parents: list[str] = field(default_factory=list)


def read_chain(
    reference: str | Path, checker: Checker, library: Library = BUILTIN, params: Sequence[str] = ()
) -> Chain:
    """The recipe that `reference` names and its parents.

    A reference is a path (a Path, text that ends in .yaml or .yml, or the name of a file that exists) or the name of
    a library recipe. A file without parameters is checked before its parents are read. params: `name=value` texts.
    """
    text = str(reference)
    found = library.open(Path(reference)) if is_file_reference(reference) else library.find(parse_reference(text))
    files: dict[str, _Read] = {}
    start = _read(found, checker, library, files, {}, partial=False)
    order = linearize(start, {name: read.parents for name, read in files.items()})
    if order is None:
        names = ", ".join(read.found.called for read in files.values())
        hint = "let a recipe stand before what it extends in every list of parents"
        extends = files[start].source.tree.at(["extends"])
        raise RecipeError(f"there is no order of parents that fits all of {names}", where=str(extends.where), hint=hint)
    declared = [block for name in order if (block := files[name].source.tree.get("params"))]
    values = param_values(_merged(declared), params)
    return Chain(tuple(_finish(files[name], checker, values, partial=name != start) for name in order), values)


def is_file_reference(reference: str | Path) -> bool:
    """It is a path: a Path, text that ends in .yaml or .yml, or the name of a file that exists."""
    return isinstance(reference, Path) or reference.endswith(_SUFFIXES) or _is_file(Path(reference))


def _read(
    found: LibraryRecipe,
    checker: Checker,
    library: Library,
    files: dict[str, _Read],
    above: Mapping[str, str],
    *,
    partial: bool,
) -> str:
    """Read `found` and its parents into `files`; returns its key. above: the files that led here, with their names."""
    key = os.path.realpath(found.path)
    if key in files:
        return key
    read = files[key] = _Read(found, read_source(found.path, found.sha256), None)
    tree = read.source.tree
    checker.check_head(tree, read.source.file)
    if not (_version(tree) > 1 and has_placeholders(tree)):
        read.tree = _check(read, checker, tree, partial=partial)
    extends = tree.get("extends")
    chain = {**above, key: found.called}
    for name in reversed(extends.entries() or (extends,) if extends else ()):
        parent = _parent(name, found, library)
        _check_ancestry(parent, name, chain, files)
        several = bool(extends and len(extends.entries()) > 1)
        read.parents.append(_read(parent, checker, library, files, chain, partial=several))
    _check_library_name(read)
    return key


def _finish(read: _Read, checker: Checker, values: Mapping[str, Any], *, partial: bool) -> RecipeFile:
    tree = read.tree or _check(read, checker, substitute(read.source.tree, values), partial=partial)
    lock_node = tree.get("lock")
    lock = build(lock_node, Lock, {}) if lock_node else None
    plain = tree.without("extends", "lock", "params", "overlays")
    overlays = overlays_of(tree, checker.pass_options)
    return RecipeFile(read.source.file, plain, _identity(read), lock, overlays)


def _check(read: _Read, checker: Checker, tree: Node, *, partial: bool) -> Node:
    checked = checker.check_file(tree, read.source.file, partial=partial)
    extends, lock = checked.get("extends"), checked.get("lock")
    if lock:
        for other in (extends, checked.get("params"), checked.get("overlays")):
            if other:
                what = "extends nothing" if other is extends else "leaves nothing open"
                raise RecipeError(f"a lock holds the whole recipe and {what}", where=str(other.where))
        sha256 = lock.get("sha256")
        if sha256 is None:  # of a parent beside others nothing is required before all is merged
            raise RecipeError("missing key 'sha256' in lock", where=str(lock.where))
        digest, says = document_digest(read.source.tree.plain()), sha256.value
        if digest != says:
            message = f"the lock was edited: its recipe has the SHA-256 {digest[:12]}…, and it says {says[:12]}…"
            hint = "use --set to change a locked recipe, or remove the `lock:` block to make it a recipe of your own"
            raise RecipeError(message, where=str(lock.where), hint=hint)
    return checked


def _identity(read: _Read) -> Parent:
    tree = read.source.tree
    version = tree.get("version")
    return Parent(
        name=tree.at(["name"]).value,
        version=version.value if version else "0.0.0",
        sha256=read.source.sha256,
        origin=read.found.origin,
    )


def _check_library_name(read: _Read) -> None:
    found, own = read.found, _identity(read)
    if found.origin != FILE and (own.name, Version(own.version)) != (found.name, found.version):
        says = f"{own.name}@{own.version}"
        raise RecipeError(f"the file calls itself {says}, and the library {found.reference}", where=read.source.file)


def _parent(extends: Node, child: LibraryRecipe, library: Library) -> LibraryRecipe:
    """What `extends` names: a path, relative to the child's folder, or a library recipe."""
    text = extends.value
    if text.endswith(_SUFFIXES) or text.startswith((".", "/")):
        if child.is_remote:
            hint = "a recipe that is shared extends by name"
            raise RecipeError(
                f"a recipe of a remote reads no files, and names {text!r}", where=str(extends.where), hint=hint
            )
        path = child.path.parent / text
        if not _is_file(path):
            raise RecipeError(f"there is no file {str(path)!r} to extend", where=str(extends.where))
        return library.open(path)
    return library.find(parse_reference(text, str(extends.where)), where=str(extends.where))


def _check_ancestry(found: LibraryRecipe, extends: Node, chain: Mapping[str, str], files: Mapping[str, _Read]) -> None:
    names, key = [*chain.values(), found.called], os.path.realpath(found.path)
    if key in chain:
        raise RecipeError(f"recipes extend one another in a circle: {' -> '.join(names)}", where=str(extends.where))
    if len(files) + (key not in files) > DEPTH_LIMIT:
        message = f"more than {DEPTH_LIMIT} recipes extend one another: {' -> '.join(names)}"
        raise Problem(extends.where, message).error()


def _version(tree: Node) -> int:
    node = tree.get("dmq")
    return int(node.value) if node and isinstance(node.value, (int, float)) else 1


def _merged(blocks: Sequence[Node]) -> Node | None:
    """The `params:` of all files, nearest first, as one."""
    merged: Node | None = None
    for block in reversed(blocks):
        merged = block if merged is None else merge_values(block, merged)
    return merged


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
