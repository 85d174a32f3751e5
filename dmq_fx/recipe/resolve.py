"""Resolve a recipe: read it, merge its parents in, write every default out, apply overrides, check all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from dmq_fx.recipe.build import build_recipe
from dmq_fx.recipe.chain import Chain, RecipeFile, read_chain
from dmq_fx.recipe.checks import Checker
from dmq_fx.recipe.digest import document_digest
from dmq_fx.recipe.language import Parent, Recipe
from dmq_fx.recipe.library import BUILTIN, Library
from dmq_fx.recipe.meaning import OVERRIDE, unused_options
from dmq_fx.recipe.merge import merge_recipes
from dmq_fx.recipe.normal import fill_in
from dmq_fx.recipe.overlays import ModelFacts, Overlay
from dmq_fx.recipe.overrides import apply_override
from dmq_fx.recipe.params import escape
from dmq_fx.recipe.problems import raise_problems
from dmq_fx.recipe.tree import Node, Position


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with nothing left to look up.

    recipe: the typed recipe; its rules and passes say where they were written.
    document: the same as plain data, every default written out, no `extends`; itself a recipe.
    parents: name, version and file SHA-256 of the recipes it extends, nearest first.
    overrides: the `--set` values that were applied, in order.
    digest: SHA-256, in hex, of the document as canonical JSON.
    file: the recipe's own file; of a lock, the file that it was made from (None in locks of older versions).
    params: the values of its parameters.
    overlays: where the overlays stand that were applied; conditional: there are overlays, applied or not.
    """

    recipe: Recipe
    document: dict[str, Any]
    parents: tuple[Parent, ...]
    overrides: tuple[str, ...]
    digest: str
    file: Parent | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    overlays: tuple[str, ...] = ()
    conditional: bool = False


def resolve(
    reference: str | Path,
    *,
    overrides: Sequence[str] = (),
    pass_options: Mapping[str, type],
    params: Sequence[str] = (),
    model: ModelFacts | None = None,
    library: Library = BUILTIN,
) -> ResolvedRecipe:
    """Resolve a recipe file or library name (`recipe.yaml`, `ptq/w8a8`, `ptq/w8a8@^1`).

    overrides: `key.path=value` texts. pass_options: the passes a recipe may name, with the dataclasses of their
    options. params: `name=value` texts. model: what overlays are chosen by; without it none is applied, and each is
    checked by itself. library: where names are looked up. A lock file resolves to the recipe it holds, with the
    parents, parameters and overrides that it records.

    Raises RecipeError with all problems of the file that has some.
    """
    checker = Checker(pass_options)
    chain = read_chain(reference, checker, library, params)
    first = chain.files[0]
    every = [overlay for file in chain.files for overlay in file.overlays]
    if model is None:
        for overlay in every:
            checker.check_whole(_merged(chain, (overlay,)), first.file)
    applied = tuple(overlay for overlay in every if model is not None and overlay.applies(model))
    tree = _merged(chain, applied)
    checker.check_whole(tree, first.file)
    if not first.lock and not chain.params:
        _check_options([_merged(chain, some) for some in ((), *((overlay,) for overlay in every))], first.file)
    tree = fill_in(tree, pass_options)
    unused: set[tuple[Position, str]] = set()
    for override in overrides:
        source = f"{OVERRIDE}{override}"
        tree = apply_override(tree, override)
        checker.check_whole(tree, source)
        unused |= unused_options(tree, source).keys()
        tree = fill_in(tree, pass_options)  # gives defaults the place of the value that they are in
    left = [unused_options(tree, place.file).get((place, name)) for place, name in unused]
    raise_problems([problem for problem in left if problem], OVERRIDE.strip())
    plain = tree.plain()
    document = escape(plain) if plain["dmq"] > 1 else plain
    return ResolvedRecipe(
        recipe=build_recipe(tree, pass_options),
        document=document,
        parents=_parents(chain.files),
        overrides=(*(first.lock.overrides if first.lock else ()), *overrides),
        digest=document_digest(document),
        file=first.lock.recipe if first.lock else first.identity,
        params={**(first.lock.params if first.lock else {}), **chain.params},
        overlays=tuple(overlay.where for overlay in applied),
        conditional=bool(every),
    )


def _check_options(trees: Sequence[Node], file: str) -> None:
    """Raise RecipeError for options written in `file` that do nothing, neither without overlays nor with any."""
    found = [unused_options(tree, file) for tree in trees]
    raise_problems([problem for key, problem in found[0].items() if all(key in one for one in found)], file)


def _merged(chain: Chain, applied: Sequence[Overlay]) -> Node:
    """One tree of all files; each file's overlays stand right over it. The newest version of the language counts."""
    layers: list[Node] = []
    for file in reversed(chain.files):
        layers += [file.tree, *(overlay.tree for overlay in file.overlays if overlay in applied)]
    merged = reduce(lambda below, above: merge_recipes(above, below), layers, Node({}, layers[0].where))
    dmq = merged.at(["dmq"])
    newest = max(file.tree.at(["dmq"]).value for file in chain.files)
    return merged if newest == dmq.value else merged.with_key("dmq", replace(dmq, value=newest), dmq.where)


def _parents(chain: Sequence[RecipeFile]) -> tuple[Parent, ...]:
    """The files after the first one; what a lock among them extended comes after it."""
    parents: list[Parent] = []
    for place, file in enumerate(chain):
        parents += [file.identity] if place else []
        parents += file.lock.parents if file.lock else ()
    return tuple(parents)
