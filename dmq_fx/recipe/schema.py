"""The JSON Schema (draft 2020-12) of a recipe file, derived from the language's dataclasses and the passes' options.

Some of its words are for writers and not in the dataclasses of a resolved recipe: `extends`, `lock`, `params`,
`overlays`, and short forms (a pass without options is its bare name, a list of one string is that string). A file that
extends another may leave out keys that its parent gives, so nested required keys are asked of files without `extends`
only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmq_fx.recipe.keys import NONE, Key, is_group, item_type, keys_of, to_plain, union_types, value_type
from dmq_fx.recipe.language import LANGUAGE_VERSION, PARAM_NAME, Lock, Param, PassSpec, Recipe, When

OWN_KEYS = ("dmq", "name", "version", "summary", "source")
"""Keys that say who a recipe is: no overlay has them."""

_TYPE_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_BOUNDS = {
    "minimum": "minimum",
    "maximum": "maximum",
    "exclusive_minimum": "exclusiveMinimum",
    "exclusive_maximum": "exclusiveMaximum",
}
_PLACEHOLDER = {"type": "string", "pattern": f"^\\$\\{{{PARAM_NAME}\\}}$", "description": "the value of a parameter"}
_REFERENCE = {
    "type": "string",
    "minLength": 1,
    "description": "the recipe this one is based on: a library name such as ptq/w8a8@^1, or a path",
}


def schema_file(version: int = LANGUAGE_VERSION) -> str:
    """Name of the published schema of a version of the language."""
    return f"recipe-v{version}.schema.json"


@dataclass(frozen=True)
class _Writer:
    """What a schema is made for. placeholders: `${name}` may stand where another kind of value belongs."""

    passes: Mapping[str, type]
    version: int
    placeholders: bool = False

    def keys(self, cls: type) -> tuple[Key, ...]:
        return tuple(key for key in keys_of(cls) if key.since <= self.version)


def build_schema(
    pass_options: Mapping[str, type], version: int = LANGUAGE_VERSION, *, placeholders: bool = False
) -> dict[str, Any]:
    """The schema of a recipe file; `pass_options` are the passes it may name, with their options' dataclasses.

    placeholders: for editors, which see a file before its parameters have values.
    """
    exact = _Writer(dict(sorted(pass_options.items())), version)
    open_ = _Writer(exact.passes, version, placeholders and version > 1)
    properties = dict(_group(Recipe, open_)["properties"])
    properties |= {name: _group(Recipe, exact)["properties"][name] for name in ("name", "version")}
    properties["dmq"] = {**properties["dmq"], "enum": [version]}
    properties["extends"] = _REFERENCE
    if version > 1:
        properties["extends"] = {"anyOf": [_REFERENCE, {"type": "array", "items": _REFERENCE, "minItems": 1}]}
        properties["params"] = _params(exact)
        properties["overlays"] = _overlays(properties, exact)
    properties["lock"] = _group(Lock, exact)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dmq recipe",
        "description": f"A quantization recipe for diffusion models, version {version} of the language.",
        "type": "object",
        "additionalProperties": False,
        "required": _required(Recipe, exact)["required"],
        "properties": properties,
    }
    complete = {"properties": {**_required(Recipe, exact)["properties"], "lock": _required(Lock, exact)}}
    return schema | {"if": {"required": ["extends"]}, "then": {}, "else": complete}


def _params(writer: _Writer) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "values that the recipe leaves open, by name: `${NAME}` where they are used",
        "propertyNames": {"pattern": f"^{PARAM_NAME}$"},
        "additionalProperties": _group(Param, writer),
    }


def _overlays(recipe: Mapping[str, Any], writer: _Writer) -> dict[str, Any]:
    keys = [key.name for key in keys_of(Recipe) if key.name not in OWN_KEYS]
    return {
        "type": "array",
        "description": "what is different for some models; a later one stands over an earlier one",
        "items": {
            "type": "object",
            "description": "Keys of a recipe that stand over this file's where `when` holds.",
            "additionalProperties": False,
            "required": ["when"],
            "properties": {"when": _group(When, writer) | {"minProperties": 1}} | {key: recipe[key] for key in keys},
        },
    }


def _group(cls: type, writer: _Writer) -> dict[str, Any]:
    """Schema of a dataclass, without its required keys."""
    properties = {key.name: _key_schema(key, writer) for key in writer.keys(cls)}
    schema: dict[str, Any] = {"type": "object"}
    if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):  # dataclass writes one where there is none
        schema["description"] = cls.__doc__.strip().splitlines()[0]
    return schema | {"additionalProperties": False, "properties": properties}


def _key_schema(key: Key, writer: _Writer) -> dict[str, Any]:
    schema = _value(key.type, key.limits, writer)
    if key.writes_none:
        schema = {"anyOf": [schema, {"const": NONE}]}
    schema = {"description": key.help} | schema
    if not key.required and not key.omit:
        schema["default"] = to_plain(key.default)
    return schema


def _value(kind: Any, limits: Mapping[str, Any], writer: _Writer) -> dict[str, Any]:
    if is_group(kind):
        return _group(kind, writer)
    if (item := item_type(kind)) is not None:
        return _list(item, limits, writer)
    if (value := value_type(kind)) is not None:
        return _mapping(value, limits, writer)
    kinds = union_types(kind)
    if len(kinds) > 1:
        return {"anyOf": [_value(one, limits, writer) for one in kinds]}
    schema = _scalar(kind, limits)
    limited = kind is not str or set(schema) > {"type"}
    return {"anyOf": [schema, _PLACEHOLDER]} if writer.placeholders and limited else schema


def _scalar(kind: type, limits: Mapping[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _TYPE_NAMES[kind]}
    choices = [choice for choice in limits.get("choices", ()) if isinstance(choice, kind)]
    if choices:
        schema["enum"] = choices
    if kind in (int, float):
        schema |= {_BOUNDS[name]: limits[name] for name in _BOUNDS if name in limits}
    if kind is str and "pattern" in limits:
        schema["pattern"] = f"^{limits['pattern']}$"
    return schema


def _list(item: Any, limits: Mapping[str, Any], writer: _Writer) -> dict[str, Any]:
    items = _pass_entry(writer) if item is PassSpec else _value(item, limits, writer)
    schema: dict[str, Any] = {"type": "array", "items": items}
    if "min_items" in limits:
        schema["minItems"] = limits["min_items"]
    return {"anyOf": [items, schema]} if item is str else schema


def _mapping(value: Any, limits: Mapping[str, Any], writer: _Writer) -> dict[str, Any]:
    if value is Any:
        return {"type": "object"}
    values = _value(value, limits, writer)
    if "keys" in limits:
        return {"type": "object", "additionalProperties": False, "properties": dict.fromkeys(limits["keys"], values)}
    names = {"pattern": f"^{limits['key_pattern']}$"} if "key_pattern" in limits else {}
    return {"type": "object", "propertyNames": names, "additionalProperties": values}


def _pass_entry(writer: _Writer) -> dict[str, Any]:
    one = {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {name: _group(options, writer) for name, options in writer.passes.items()},
    }
    return {"anyOf": [{"type": "string", "enum": list(writer.passes)}, one]}


def _required(kind: Any, writer: _Writer) -> dict[str, Any]:
    """A schema that asks for the required keys of `kind`, all the way down, and for nothing else.

    A pass with required options cannot be a bare name.
    """
    if kind is PassSpec:
        options = {name: found for name, cls in writer.passes.items() if (found := _required(cls, writer))}
        return {"not": {"enum": list(options)}, "properties": options} if options else {}
    if is_group(kind):
        names = [key.name for key in writer.keys(kind) if key.required]
        nested = {key.name: found for key in writer.keys(kind) if (found := _required(key.type, writer))}
        return ({"required": names} if names else {}) | ({"properties": nested} if nested else {})
    if (item := item_type(kind)) is not None and (found := _required(item, writer)):
        return {"items": found}
    if (value := value_type(kind)) not in (None, Any) and (found := _required(value, writer)):
        return {"additionalProperties": found}
    return {}
