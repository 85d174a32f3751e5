"""Properties of the language over generated recipes and over any text."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from dmq_fx.errors import RecipeError
from dmq_fx.recipe import Recipe, ResolvedRecipe, build_schema, lock_document, resolve, write_lock
from dmq_fx.recipe.build import build_recipe
from dmq_fx.recipe.dump import to_yaml
from dmq_fx.recipe.explain import shape_problems
from dmq_fx.recipe.keys import to_plain
from dmq_fx.recipe.meaning import MEANT_FOR
from dmq_fx.recipe.normal import fill_in
from dmq_fx.recipe.source import read_recipe_text
from dmq_fx.recipe.tree import Position, from_plain

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=12)
FREE = st.fixed_dictionaries({}, optional={"a": st.none() | st.integers(0, 9), "b": st.lists(TEXT, max_size=2)})


@st.composite
def instances(draw: DrawFn, schema: Mapping[str, Any], needed: Mapping[str, Any]) -> Any:
    """A value that `schema` takes; `needed` says which keys of it are required."""
    if "anyOf" in schema:
        return draw(instances(draw(st.sampled_from(schema["anyOf"])), needed))
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        excluded = needed.get("not", {}).get("enum", [])
        return draw(st.sampled_from([choice for choice in schema["enum"] if choice not in excluded]))
    if schema["type"] == "object":
        return draw(mappings(schema, needed))
    if schema["type"] == "array":
        items = instances(schema["items"], needed.get("items", {}))
        return draw(st.lists(items, min_size=schema.get("minItems", 0), max_size=3))
    return draw(scalars(schema))


@st.composite
def mappings(draw: DrawFn, schema: Mapping[str, Any], needed: Mapping[str, Any]) -> dict[str, Any]:
    if "additionalProperties" not in schema:
        return draw(FREE)
    if "properties" not in schema:
        values = instances(schema["additionalProperties"], needed.get("additionalProperties", {}))
        return draw(st.dictionaries(st.text(string.ascii_lowercase, min_size=1, max_size=5), values, max_size=3))
    required = set(needed.get("required", ()))
    names = [name for name in schema["properties"] if name in required or draw(st.booleans())]
    if schema.get("maxProperties") == 1:
        names = [draw(st.sampled_from(list(schema["properties"])))]
    inner = needed.get("properties", {})
    return {name: draw(instances(schema["properties"][name], inner.get(name, {}))) for name in names}


def scalars(schema: Mapping[str, Any]) -> SearchStrategy[Any]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema["type"] == "boolean":
        return st.booleans()
    if schema["type"] == "integer":
        return st.integers(low or 0, high or 2**40)
    if schema["type"] == "number":
        below, above = schema.get("exclusiveMinimum", low), schema.get("exclusiveMaximum", high)
        excluded = {"exclude_min": "exclusiveMinimum" in schema, "exclude_max": "exclusiveMaximum" in schema}
        return st.floats(below, above, allow_nan=False, allow_infinity=False, **excluded)
    return st.from_regex(schema["pattern"], fullmatch=True) if "pattern" in schema else TEXT


@st.composite
def documents(draw: DrawFn, pass_options: Mapping[str, type]) -> dict[str, Any]:
    """A document that the schema takes, whether or not its names refer to something."""
    schema = build_schema(pass_options)
    of_files = ("extends", "lock", "params", "overlays")
    recipe = {**schema, "properties": {k: v for k, v in schema["properties"].items() if k not in of_files}}
    return draw(mappings(recipe, {**schema["else"], "required": schema["required"]}))


@st.composite
def recipes(draw: DrawFn, pass_options: Mapping[str, type]) -> dict[str, Any]:
    """A document that is a recipe: names refer to something, limits are in order, every rule can apply."""
    document = draw(documents(pass_options))
    schemes = document.setdefault("schemes", {})
    schemes.pop("none", None)
    for scheme in schemes.values():
        if scheme.get("activation", "none") == "none" == scheme.get("weight", "none"):
            scheme["weight"] = {"bits": 4}
        for half in ("weight", "activation"):
            spec = scheme.get(half)
            for name, (choice, wanted) in MEANT_FOR.items():
                if isinstance(spec, dict) and spec.get(choice) != wanted:
                    spec.pop(name, None)
    entries = {next(iter([entry] if isinstance(entry, str) else entry)): entry for entry in document.get("passes", [])}
    document["passes"] = list(entries.values())
    for rule in document.setdefault("rules", []):
        rule["scheme"] = draw(st.sampled_from([*schemes, "none"]))
        for place in ("before", "after", "name"):  # of a rule among a parent's; names are unique
            rule.pop(place, None)
        match = rule.setdefault("match", {})
        match["name"] = draw(st.lists(st.sampled_from(["a.*", "re:a+", "b", "*"]), min_size=1))
        match.pop("max_channels", None)
        if "passes" in rule:
            rule["passes"] = list(entries)
    matches = [json.dumps(rule["match"], sort_keys=True) for rule in document["rules"]]
    document["rules"] = [rule for place, rule in enumerate(document["rules"]) if matches.index(matches[place]) == place]
    document["rules"].append({"scheme": "none"})
    for gate in document.get("expect", {}).values():
        gate.update({"min": draw(st.sampled_from(["none", -1.5, 0])), "max": 2})
    return document


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_the_schema_takes_becomes_a_recipe(pass_options: Mapping[str, type], data: st.DataObject) -> None:
    document = data.draw(documents(pass_options))
    tree = from_plain(document, Position("r.yaml", 1, 1))
    assert shape_problems(tree, build_schema(pass_options)) == []
    try:
        recipe = build_recipe(fill_in(tree, pass_options), pass_options)
    except RecipeError as error:
        assert error.message == "13 iterations bring bad luck"
        return
    assert isinstance(recipe, Recipe)


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_lock_of_any_recipe_resolves_to_the_same(
    module_folder: Path, pass_options: Mapping[str, type], data: st.DataObject
) -> None:
    path = module_folder / "r.yaml"
    path.write_text(to_yaml(data.draw(recipes(pass_options))), encoding="utf-8")
    resolved = resolve(path, pass_options=pass_options)
    lock = lock_document(resolved, model={"class": "UNet"}, environment={"torch": "2.13"}, seed=1)
    again = resolve(write_lock(module_folder / "r.lock.yaml", lock), pass_options=pass_options)
    assert (again.document, again.digest) == (resolved.document, resolved.digest)
    assert without_places(again) == without_places(resolved)


def without_places(resolved: ResolvedRecipe) -> Any:
    recipe = resolved.recipe
    return to_plain(recipe.calibration), to_plain(recipe.schemes), [(r.match, r.passes) for r in recipe.rules]


VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXT.filter(lambda k: k != "<<"), values, max_size=3),
    max_leaves=8,
)
TRICKY = st.sampled_from(
    ["1e3", "yes", "017", "0o7", "1:30", "~", "<<", "=", "*", "&a", "- x", "a: b", "#", " x", "\t"]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(TEXT.filter(bool), VALUES | TRICKY, min_size=1, max_size=4))
def test_what_is_written_reads_back_here_and_elsewhere(document: dict[str, Any]) -> None:
    document.pop("<<", None)
    document["last"] = 1
    text = to_yaml(document)
    assert read_recipe_text(text, "r.yaml").plain() == document
    assert yaml.safe_load(text) == document


YAML_PIECES = st.lists(
    st.sampled_from(
        [*"abc:-?[]{},#&*!|>'\"%@`<~ \n\t\\0", "\n  ", "---\n", "...\n", "<<: ", "!!x ", "\\U", "%YAML 1.1"]
    )
    | TEXT,
    max_size=40,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(YAML_PIECES | st.text(max_size=60) | st.binary(max_size=60))
def test_reading_raises_nothing_but_recipe_errors(
    module_folder: Path, pass_options: Mapping[str, type], content: str | bytes
) -> None:
    path = module_folder / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError) as caught:
        resolve(path, pass_options=pass_options)
    assert str(caught.value).startswith(str(path))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_recipe_raises_nothing_but_recipe_errors(
    module_folder: Path, pass_options: Mapping[str, type], data: st.DataObject
) -> None:
    document = data.draw(recipes(pass_options))
    target: Any = document
    while isinstance(target, (dict, list)) and target:
        parent, key = target, data.draw(st.sampled_from(list(target) if isinstance(target, dict) else [0]))
        target = target[key]
        if data.draw(st.booleans()):
            break
    parent[key] = data.draw(VALUES | st.none())
    path = module_folder / "damaged.yaml"
    path.write_text(to_yaml(document), encoding="utf-8")
    try:
        resolve(path, pass_options=pass_options)
    except RecipeError as error:
        assert str(error).startswith(f"{path}:")


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["", "calibration.", "schemes.body.weight.", "rules.0.", "rules.0.match.", "expect.", "passes."]),
    TEXT | st.sampled_from(["steps", "bits", "scheme", "role", "bops", "0", "name"]),
    TEXT | st.sampled_from(["=", "=[", "={}", "=1", "=none", "=x: y", "=[a, b]", "=first"]),
)
def test_overrides_raise_nothing_but_recipe_errors(
    pass_options: Mapping[str, type], head: str, key: str, value: str
) -> None:
    override = head + key + value
    try:
        resolved = resolve("ptq/w8a8", overrides=[override], pass_options=pass_options)
    except RecipeError as error:
        assert error.where
    else:
        assert resolved.overrides == (override,)
