"""The recipe files that an artifact was made from, as far as dmq's own library has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmq_fx.errors import RecipeError
from dmq_fx.inspection.why import chain_files
from dmq_fx.recipe.chain import read_chain
from dmq_fx.recipe.checks import Checker
from dmq_fx.recipe.resolve import ResolvedRecipe, resolve
from dmq_fx.recipe.tree import Node


@dataclass(frozen=True)
class Origin:
    """files: (name, tree) nearest first, as `dmq_fx.inspection.why` takes them. resolved: what they give."""

    files: list[tuple[str, Node]]
    resolved: ResolvedRecipe


def recipe_origin(lock: Mapping[str, Any], digest: str, pass_options: Mapping[str, type]) -> Origin | None:
    """The files behind a lock: those that give the recipe with this digest again, and no others.

    lock: the `lock:` block as plain data. None for a recipe from elsewhere, another version of the library, and a
    recipe with overlays that were applied. Nothing is fetched.
    """
    recipe = lock.get("recipe")
    if recipe is None:
        return None
    reference = f"{recipe['name']}@{recipe['version']}"
    params = [f"{name}={json.dumps(value)}" for name, value in lock.get("params", {}).items()]
    try:
        resolved = resolve(reference, overrides=lock["overrides"], pass_options=pass_options, params=params)
        if resolved.digest != digest:
            return None
        return Origin(chain_files(read_chain(reference, Checker(pass_options), params=params), ()), resolved)
    except RecipeError:
        return None
