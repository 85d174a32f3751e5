"""The text of a new recipe, with a line that lets editors check it and complete its keys."""

from __future__ import annotations

import json
import os
import re
from importlib.resources import files
from pathlib import Path

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.chain import is_file_reference
from dmq_fx.recipe.language import LANGUAGE_VERSION, RECIPE_NAME
from dmq_fx.recipe.library import PACKAGE
from dmq_fx.recipe.resolve import ResolvedRecipe
from dmq_fx.recipe.schema import schema_file

_PLAIN = re.compile(r"[A-Za-z0-9./][A-Za-z0-9./_@^~<>=,!+*-]*")  # needs no quotes in YAML


def new_text(name: str, parent: str, resolved: ResolvedRecipe, folder: Path) -> str:
    """A recipe called `name` that extends `parent` (which resolves to `resolved`) and changes nothing yet.

    folder: where its file will be; a parent that is a file is named from there.
    """
    if not re.fullmatch(RECIPE_NAME, name):
        hint = "family/name, of letters, digits, '.', '_' and '-'"
        raise RecipeError(f"{name[:80]!r} is not the name of a recipe", hint=hint)
    recipe = resolved.recipe
    schemes = ", ".join(recipe.schemes) or "none"
    passes = ", ".join(entry.name for entry in recipe.passes) or "none"
    rules = ", ".join(rule.name for rule in recipe.rules if rule.name)
    return (
        f"# yaml-language-server: $schema=./{schema_file()}\n"
        f"dmq: {LANGUAGE_VERSION}\n"
        f"name: {name}\n"
        "version: 0.1.0\n"
        'summary: ""\n'
        f"extends: {_extends(parent, folder)}\n"
        f"# The parent's schemes: {schemes}; passes: {passes}{f'; named rules: {rules}' if rules else ''}.\n"
        "# Keys merge with the parent's and win; rules stand before the parent's. `dmq recipe show` prints all of it.\n"
    )


def _extends(parent: str, folder: Path) -> str:
    if is_file_reference(parent):
        path = Path(parent)
        relative = Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve())).as_posix()
        parent = relative if relative.startswith("..") else f"./{relative}"
    return parent if _PLAIN.fullmatch(parent) else json.dumps(parent, ensure_ascii=False)


def write_schema(folder: Path) -> Path:
    """Put the language's schema into `folder`, where recipes name it."""
    target = folder / schema_file()
    text = (files(PACKAGE) / schema_file()).read_text("utf-8")
    if not target.is_file() or target.read_text("utf-8") != text:
        target.write_text(text, encoding="utf-8")
    return target
