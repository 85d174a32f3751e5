"""Generate `docs/recipes.md` and `recipes/recipe-v*.schema.json`: `python -m dmq_fx.recipe.docs`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmq_fx.errors import InternalError, RecipeError
from dmq_fx.recipe import docs_text as text
from dmq_fx.recipe.checks import Checker
from dmq_fx.recipe.keys import Key, is_group, item_type, keys_of, to_plain, union_types, value_type
from dmq_fx.recipe.language import LANGUAGE_VERSION, LANGUAGE_VERSIONS, Lock, Param, PassSpec, Recipe, When
from dmq_fx.recipe.library import list_recipes
from dmq_fx.recipe.resolve import resolve
from dmq_fx.recipe.schema import build_schema, schema_file
from dmq_fx.recipe.source import read_recipe_text

_FILE_KEYS = (
    "| `extends` | string or list of string | *left out* | the recipes this one is based on (see below) |",
    "| `params` | mapping to mapping | *left out* | values that are left open (see below) |",
    "| `overlays` | list of mapping | *left out* | what is different for some models (see below) |",
)
_TYPE_NAMES = {bool: "true or false", int: "integer", float: "number", str: "string", Any: "any value"}


def schema_text(pass_options: Mapping[str, type], version: int = LANGUAGE_VERSION) -> str:
    """The text of the schema file of a version of the language."""
    return json.dumps(build_schema(pass_options, version, placeholders=True), indent=1, ensure_ascii=False) + "\n"


def reference_text(pass_options: Mapping[str, type]) -> str:
    """The text of `docs/recipes.md`."""
    library = "\n".join(_library(pass_options))
    messages = _messages(text.MISTAKES, pass_options)
    parts = [
        text.INTRODUCTION.replace("{example}", text.EXAMPLE),
        *(_section(name, cls) for name, cls in _groups(Recipe, "A recipe")),
        *_passes(pass_options),
        text.MATCHING,
        text.SHORT_FORMS,
        text.EXTENDS.replace("{library}", library).replace("{child}", text.CHILD),
        text.COMPOSITION.replace("{composed}", text.COMPOSED).replace("{learned}", text.LEARNED),
        _section("`params.NAME`", Param),
        _section("`overlays[].when`", When),
        text.OVERRIDES,
        text.LOCK,
        *(_section(name, cls) for name, cls in _groups(Lock, "`lock`")),
        text.ERRORS.replace("{mistakes}", text.MISTAKES).replace("{messages}", messages),
    ]
    return "\n".join(parts)


def main() -> None:
    """Write both files into the checkout that this module lies in."""
    from dmq_fx.pass_api import pass_options  # here, so that reading this module imports no pass

    root = Path(__file__).resolve().parents[2]
    if not (root / "recipes").is_dir():
        raise InternalError("docs are generated in a checkout of dmq", where=str(root))
    options = pass_options()
    for path, content in (
        *((root / "recipes" / schema_file(one), schema_text(options, one)) for one in LANGUAGE_VERSIONS),
        (root / "docs" / "recipes.md", reference_text(options)),
    ):
        path.write_text(content, encoding="utf-8")
        print(f"wrote {path.relative_to(root)}")


def _groups(cls: type, name: str) -> Iterator[tuple[str, type]]:
    """`cls` and the dataclasses inside it, each with the path that a recipe writes to get there."""
    yield name, cls
    inside = "" if cls is Recipe else name.strip("`") + "."
    for key in keys_of(cls):
        for kind, suffix in ((key.type, ""), (item_type(key.type), "[]"), (value_type(key.type), ".NAME")):
            if is_group(kind) and kind is not PassSpec:
                yield from _groups(kind, f"`{inside}{key.name}{suffix}`")


def _section(name: str, cls: type, level: str = "###") -> str:
    summary = (cls.__doc__ or "").strip().splitlines()[:1]
    lines = [f"{level} {name}", ""]
    if summary and not summary[0].startswith(f"{cls.__name__}("):  # dataclass writes one where there is none
        lines += [summary[0], ""]
    rows = [_row(key) for key in keys_of(cls)]
    table = ["| Key | Type | Default | Meaning |", "| --- | --- | --- | --- |", *rows] if rows else ["No options."]
    return "\n".join([*lines, *table, *(_FILE_KEYS if cls is Recipe else ()), ""])


def _row(key: Key) -> str:
    cells = (f"`{key.name}`", _type(key), _default(key), key.help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(key: Key) -> str:
    words = _kind(key.type, key.limits)
    return words + (" or `none`" if key.writes_none else "")


def _kind(kind: Any, limits: Mapping[str, Any]) -> str:
    if is_group(kind):
        return "mapping"
    if (item := item_type(kind)) is not None:
        return "list of passes" if item is PassSpec else f"list of {_kind(item, limits)}"
    if (value := value_type(kind)) is not None:
        names = f" of {_one_of(limits['keys'])}" if "keys" in limits else ""
        return f"mapping{names} to {_kind(value, {})}"
    return " or ".join(_scalar(one, limits) for one in union_types(kind))


def _scalar(kind: Any, limits: Mapping[str, Any]) -> str:
    choices = [choice for choice in limits.get("choices", ()) if isinstance(choice, kind)] if kind is not Any else []
    if choices:
        return _one_of(choices)
    bounds = {"minimum": "≥", "exclusive_minimum": ">", "maximum": "≤", "exclusive_maximum": "<"}
    said = [f"{sign} {limits[name]}" for name, sign in bounds.items() if name in limits] if kind in (int, float) else []
    return ", ".join([_TYPE_NAMES[kind], *said])


def _one_of(choices: Any) -> str:
    return ", ".join(f"`{choice}`" for choice in choices)


def _default(key: Key) -> str:
    if key.required:
        return ""
    if key.omit:
        return "*left out*"
    plain = to_plain(key.default)
    if is_group(key.type) and isinstance(plain, dict):
        return "its defaults"
    return f"`{plain}`" if isinstance(plain, str) and plain else f"`{json.dumps(plain)}`"


def _passes(pass_options: Mapping[str, type]) -> Iterator[str]:
    yield "## Passes\n\nEntries of `passes`, in the order they run. Each is `NAME: {options}`.\n"
    for name, options in sorted(pass_options.items()):
        for path, cls in _groups(options, f"`{name}`"):
            yield _section(path, cls)


def _library(pass_options: Mapping[str, type]) -> Iterator[str]:
    yield "| Recipe | What it does |"
    yield "| --- | --- |"
    for entry in list_recipes():
        recipe = resolve(entry.path, pass_options=pass_options).recipe
        yield f"| `{entry.reference}` | {recipe.summary} |"


def _messages(recipe: str, pass_options: Mapping[str, type]) -> str:
    try:
        Checker(pass_options).check_file(read_recipe_text(recipe, "recipe.yaml"), "recipe.yaml")
    except RecipeError as error:
        return str(error)
    raise InternalError("the recipe with mistakes has none")


if __name__ == "__main__":
    main()
