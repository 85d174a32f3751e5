"""The JSON Schema (draft 2020-12) of a recipe file, derived from the language's dataclasses and the passes' options.

Three of its words are for writers and not in the dataclasses: `extends`, `lock`, and short forms (a pass without
options is its bare name, a list of one string is that string). A file that extends another may leave out keys that
its parent gives, so nested required keys are asked of files without `extends` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmq_fx.recipe.keys import NONE, Key, is_group, item_type, keys_of, to_plain, union_types, value_type
from dmq_fx.recipe.language import LANGUAGE_VERSION, Lock, PassSpec, Recipe

SCHEMA_FILE = f"recipe-v{LANGUAGE_VERSION}.schema.json"

_TYPE_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_BOUNDS = {
    "minimum": "minimum",
    "maximum": "maximum",
    "exclusive_minimum": "exclusiveMinimum",
    "exclusive_maximum": "exclusiveMaximum",
}


def build_schema(pass_options: Mapping[str, type]) -> dict[str, Any]:
    """The schema of a recipe file; `pass_options` are the passes it may name, with their options' dataclasses."""
    passes = dict(sorted(pass_options.items()))
    recipe = _group(Recipe, passes)
    properties = dict(recipe["properties"])
    properties["extends"] = {
        "type": "string",
        "minLength": 1,
        "description": "the recipe this one is based on: a library name such as ptq/w8a8@^1, or a path",
    }
    properties["lock"] = _group(Lock, passes)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dmq recipe",
        "description": f"A quantization recipe for diffusion models, version {LANGUAGE_VERSION} of the language.",
        "type": "object",
        "additionalProperties": False,
        "required": _required(Recipe, passes)["required"],
        "properties": properties,
    }
    complete = {"properties": {**_required(Recipe, passes)["properties"], "lock": _required(Lock, passes)}}
    return schema | {"if": {"required": ["extends"]}, "then": {}, "else": complete}


def _group(cls: type, passes: Mapping[str, type]) -> dict[str, Any]:
    """Schema of a dataclass, without its required keys."""
    properties = {key.name: _key_schema(key, passes) for key in keys_of(cls)}
    schema: dict[str, Any] = {"type": "object"}
    if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):  # dataclass writes one where there is none
        schema["description"] = cls.__doc__.strip().splitlines()[0]
    return schema | {"additionalProperties": False, "properties": properties}


def _key_schema(key: Key, passes: Mapping[str, type]) -> dict[str, Any]:
    schema = _value(key.type, key.limits, passes)
    if key.writes_none:
        schema = {"anyOf": [schema, {"const": NONE}]}
    schema = {"description": key.help} | schema
    if not key.required and not key.omit:
        schema["default"] = to_plain(key.default)
    return schema


def _value(kind: Any, limits: Mapping[str, Any], passes: Mapping[str, type]) -> dict[str, Any]:
    if is_group(kind):
        return _group(kind, passes)
    if (item := item_type(kind)) is not None:
        return _list(item, limits, passes)
    if (value := value_type(kind)) is not None:
        return _mapping(value, limits, passes)
    kinds = union_types(kind)
    if len(kinds) > 1:
        return {"anyOf": [_value(one, limits, passes) for one in kinds]}
    return _scalar(kind, limits)


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


def _list(item: Any, limits: Mapping[str, Any], passes: Mapping[str, type]) -> dict[str, Any]:
    items = _pass_entry(passes) if item is PassSpec else _value(item, limits, passes)
    schema: dict[str, Any] = {"type": "array", "items": items}
    if "min_items" in limits:
        schema["minItems"] = limits["min_items"]
    return {"anyOf": [items, schema]} if item is str else schema


def _mapping(value: Any, limits: Mapping[str, Any], passes: Mapping[str, type]) -> dict[str, Any]:
    if value is Any:
        return {"type": "object"}
    values = _value(value, limits, passes)
    if "keys" in limits:
        return {"type": "object", "additionalProperties": False, "properties": dict.fromkeys(limits["keys"], values)}
    names = {"pattern": f"^{limits['key_pattern']}$"} if "key_pattern" in limits else {}
    return {"type": "object", "propertyNames": names, "additionalProperties": values}


def _pass_entry(passes: Mapping[str, type]) -> dict[str, Any]:
    one = {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {name: _group(options, passes) for name, options in passes.items()},
    }
    return {"anyOf": [{"type": "string", "enum": list(passes)}, one]}


def _required(kind: Any, passes: Mapping[str, type]) -> dict[str, Any]:
    """A schema that asks for the required keys of `kind`, all the way down, and for nothing else.

    A pass with required options cannot be a bare name.
    """
    if kind is PassSpec:
        options = {name: found for name, cls in passes.items() if (found := _required(cls, passes))}
        return {"not": {"enum": list(options)}, "properties": options} if options else {}
    if is_group(kind):
        names = [key.name for key in keys_of(kind) if key.required]
        nested = {key.name: found for key in keys_of(kind) if (found := _required(key.type, passes))}
        return ({"required": names} if names else {}) | ({"properties": nested} if nested else {})
    if (item := item_type(kind)) is not None and (found := _required(item, passes)):
        return {"items": found}
    if (value := value_type(kind)) not in (None, Any) and (found := _required(value, passes)):
        return {"additionalProperties": found}
    return {}
