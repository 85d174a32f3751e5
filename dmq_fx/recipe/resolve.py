"""Resolve a recipe: read it, merge its parents in, write every default out, apply overrides, check all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from dmq_fx.recipe.build import build_recipe
from dmq_fx.recipe.chain import RecipeFile, read_chain
from dmq_fx.recipe.checks import Checker
from dmq_fx.recipe.digest import document_digest
from dmq_fx.recipe.language import Parent, Recipe
from dmq_fx.recipe.merge import merge_recipes
from dmq_fx.recipe.normal import fill_in
from dmq_fx.recipe.overrides import apply_override


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with nothing left to look up.

    recipe: the typed recipe; its rules and passes say where they were written.
    document: the same as plain data, every default written out, no `extends`; itself a recipe.
    parents: name, version and file SHA-256 of the recipes it extends, nearest first.
    overrides: the `--set` values that were applied, in order.
    digest: SHA-256, in hex, of the document as canonical JSON.
    """

    recipe: Recipe
    document: dict[str, Any]
    parents: tuple[Parent, ...]
    overrides: tuple[str, ...]
    digest: str


def resolve(
    reference: str | Path, *, overrides: Sequence[str] = (), pass_options: Mapping[str, type]
) -> ResolvedRecipe:
    """Resolve a recipe file or library name (`recipe.yaml`, `ptq/w8a8`, `ptq/w8a8@^1`).

    overrides: `key.path=value` texts. pass_options: the passes a recipe may name, with the dataclasses of their
    options. A lock file resolves to the recipe it holds, with the parents and overrides that it records.

    Raises RecipeError with all problems of the file that has some.
    """
    checker = Checker(pass_options)
    chain = read_chain(reference, checker)
    file = chain[0].file
    tree = reduce(lambda parent, child: merge_recipes(child.tree, parent), reversed(chain[:-1]), chain[-1].tree)
    checker.check_whole(tree, file)
    tree = fill_in(tree, pass_options)
    for override in overrides:
        tree = apply_override(tree, override)
        checker.check_whole(tree, f"--set {override}")
        tree = fill_in(tree, pass_options)
    document = tree.plain()
    return ResolvedRecipe(
        recipe=build_recipe(tree, pass_options),
        document=document,
        parents=_parents(chain),
        overrides=(*(chain[0].lock.overrides if chain[0].lock else ()), *overrides),
        digest=document_digest(document),
    )


def _parents(chain: tuple[RecipeFile, ...]) -> tuple[Parent, ...]:
    """The files after the first one; what a lock among them extended comes after it."""
    parents: list[Parent] = []
    for place, file in enumerate(chain):
        parents += [file.identity] if place else []
        parents += file.lock.parents if file.lock else ()
    return tuple(parents)
