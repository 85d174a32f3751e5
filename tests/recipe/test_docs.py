"""The generated files are up to date, and their examples are recipes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from dmq_fx.compiler import plan
from dmq_fx.pass_api import PASSES
from dmq_fx.recipe import build_schema, docs_text, resolve
from dmq_fx.recipe.docs import reference_text, schema_text
from dmq_fx.recipe.language import LANGUAGE_VERSIONS
from dmq_fx.recipe.schema import schema_file

ROOT = Path(__file__).parents[2]
HINT = "run `python -m dmq_fx.recipe.docs`"


@pytest.fixture(scope="module")
def real_passes() -> Mapping[str, type]:
    return {name: entry.Options for name, entry in PASSES}


@pytest.mark.parametrize("version", LANGUAGE_VERSIONS)
def test_the_schema_files_are_up_to_date(real_passes: Mapping[str, type], version: int) -> None:
    assert (ROOT / "recipes" / schema_file(version)).read_text("utf-8") == schema_text(real_passes, version), HINT


def test_the_reference_is_up_to_date(real_passes: Mapping[str, type]) -> None:
    assert (ROOT / "docs" / "recipes.md").read_text("utf-8") == reference_text(real_passes), HINT


def test_the_schema_is_a_schema_and_does_not_depend_on_order(pass_options: Mapping[str, type]) -> None:
    Draft202012Validator.check_schema(build_schema(pass_options))
    backwards = dict(reversed(pass_options.items()))
    assert schema_text(backwards) == schema_text(pass_options)


def test_no_mapping_takes_keys_it_does_not_know(pass_options: Mapping[str, type]) -> None:
    def walk(schema: object, path: str) -> None:
        if isinstance(schema, dict):
            if schema.get("type") == "object" and path not in ("/lock/model", "/lock/environment", "/lock/params"):
                assert "additionalProperties" in schema, path
            for key, item in schema.items():
                walk(item, path if key == "properties" else f"{path}/{key}")
        elif isinstance(schema, list):
            for item in schema:
                walk(item, path)

    walk(build_schema(pass_options), "")


def test_the_examples_resolve(folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "mine.yaml").write_text(docs_text.EXAMPLE)
    (folder / "child.yaml").write_text(docs_text.CHILD)
    assert resolve("mine.yaml", pass_options=pass_options).recipe.name == "mine/w4a8"
    (folder / "learned.yaml").write_text(docs_text.LEARNED)
    (folder / "uniform.yaml").write_text(docs_text.COMPOSED)
    options = {**pass_options, **{name: entry.Options for name, entry in PASSES}}
    uniform = resolve("uniform.yaml", pass_options=options, params=["w_bits=3"])
    assert uniform.recipe.summary.startswith("W3A8") and uniform.conditional
    overrides = re.findall(r"^--set '?(.*?)'?$", docs_text.OVERRIDES, re.MULTILINE)
    assert len(overrides) == 6
    child = resolve("child.yaml", overrides=overrides[:3] + overrides[4:], pass_options=pass_options).recipe
    weight = child.schemes["w4a8"].weight
    assert weight is not None
    assert (weight.bits, len(child.rules), child.rules[0].scheme) == (3, 6, "none")
    assert child.budget == "quick"


def test_the_examples_fit_the_default_model(folder: Path) -> None:
    for name, text in (("mine", docs_text.EXAMPLE), ("child", docs_text.CHILD)):
        (folder / f"{name}.yaml").write_text(text)
        assert plan(f"{name}.yaml").totals.quantized_sites > 50


def test_the_reference_shows_the_options_of_passes(real_passes: Mapping[str, type]) -> None:
    text = reference_text(real_passes)
    assert "| `agreement` | number, ≥ 0.0, ≤ 1.0 | `0.85` |" in text
    assert "### `les.timestep_weighting`\n\nHow the loss is averaged over the sampler's steps.\n\n| Key |" in text
    assert "{" not in re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)  # no placeholder is left
