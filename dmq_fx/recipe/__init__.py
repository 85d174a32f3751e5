"""The recipe language: read, check, resolve and lock recipes. Nothing here needs torch."""

from dmq_fx.recipe.language import (
    ActivationSpec,
    Calibration,
    Gate,
    Match,
    Parent,
    PassSpec,
    Recipe,
    Rule,
    Scheme,
    WeightSpec,
    option,
)
from dmq_fx.recipe.library import Library, LibraryRecipe, find_recipe, list_recipes
from dmq_fx.recipe.lock import LOCK_NAME, lock_document, lock_text, write_lock
from dmq_fx.recipe.matching import first_match, matches
from dmq_fx.recipe.overlays import ModelFacts
from dmq_fx.recipe.problems import RecipeErrors, problems_of
from dmq_fx.recipe.resolve import ResolvedRecipe, resolve
from dmq_fx.recipe.schema import build_schema

__all__ = [
    "LOCK_NAME",
    "ActivationSpec",
    "Calibration",
    "Gate",
    "Library",
    "LibraryRecipe",
    "Match",
    "ModelFacts",
    "Parent",
    "PassSpec",
    "Recipe",
    "RecipeErrors",
    "ResolvedRecipe",
    "Rule",
    "Scheme",
    "WeightSpec",
    "build_schema",
    "find_recipe",
    "first_match",
    "list_recipes",
    "lock_document",
    "lock_text",
    "matches",
    "option",
    "problems_of",
    "resolve",
    "write_lock",
]
