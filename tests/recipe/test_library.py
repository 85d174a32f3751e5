"""The recipes that are installed with dmq."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from dmq_fx.errors import InternalError, RecipeError
from dmq_fx.pass_api import PASSES
from dmq_fx.recipe import LibraryRecipe, find_recipe, library, list_recipes, resolve


@pytest.fixture(scope="module")
def pass_options() -> Mapping[str, type]:
    """The library's recipes name the passes that there are."""
    return {name: entry.Options for name, entry in PASSES}


@pytest.mark.parametrize("entry", list_recipes(), ids=lambda entry: entry.reference)
def test_every_recipe_resolves_and_is_who_its_file_name_says(
    entry: LibraryRecipe, pass_options: Mapping[str, type]
) -> None:
    recipe = resolve(entry.reference, pass_options=pass_options).recipe
    assert (recipe.name, recipe.version) == (entry.name, str(entry.version))
    assert recipe.summary
    assert {rule.scheme for rule in recipe.rules} - {"none"} <= set(recipe.schemes)
    assert entry.path.read_text().startswith("# ")  # a comment tells a reader what it is for


@pytest.mark.parametrize(
    ("name", "weight_bits", "activation_bits", "range_"),
    [
        ("ptq/w8a8", 8, 8, "minmax"),
        ("ptq/w6a6", 6, 6, "mse"),
        ("ptq/w4a8", 4, 8, "mse"),
        ("ptq/w4a6", 4, 6, "mse"),
        ("weight-only/w8", 8, None, "minmax"),
        ("weight-only/w4", 4, None, "mse"),
    ],
)
def test_the_bits_that_a_name_promises(
    pass_options: Mapping[str, type], name: str, weight_bits: int, activation_bits: int | None, range_: str
) -> None:
    schemes = resolve(name, pass_options=pass_options).recipe.schemes
    weight, activation = schemes["body"].weight, schemes["body"].activation
    assert weight is not None
    assert (weight.bits, weight.range, weight.symmetric) == (weight_bits, range_, weight_bits == 8)
    assert (activation.bits if activation else None) == activation_bits
    if "boundary" in schemes:
        boundary = schemes["boundary"].weight
        assert boundary is not None
        assert boundary.bits == 8


def test_unknown_versions_list_the_known_ones() -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe("ptq/base@^9", where="r.yaml:3:10")
    assert str(caught.value) == ("r.yaml:3:10: the library has no version ^9 of 'ptq/base'\n  hint: it has: 1.0.0")


def test_names_that_resemble_none_list_the_library() -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe("something/else")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("the library has: ")
    assert "ptq/w8a8" in caught.value.hint


def test_the_newest_version_of_a_library(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pass_options: Mapping[str, type]
) -> None:
    monkeypatch.setattr(library, "files", lambda package: folder)
    (folder / "x").mkdir()
    for version in ("1.0.0", "1.10.0", "1.9.0", "2.0.0"):
        (folder / "x" / f"y@{version}.yaml").write_text(
            f"dmq: 1\nname: x/y\nversion: {version}\nrules: [{{match: {{}}, scheme: none}}]\n"
        )
    assert [recipe.reference for recipe in list_recipes()] == ["x/y@1.0.0", "x/y@1.9.0", "x/y@1.10.0", "x/y@2.0.0"]
    assert resolve("x/y@^1", pass_options=pass_options).recipe.version == "1.10.0"
    (folder / "x" / "y@2.0.0.yaml").write_text("dmq: 1\nname: x/z\nextends: x/y@^1\n")
    with pytest.raises(RecipeError, match=r"the file calls itself x/z@0\.0\.0, and the library x/y@2\.0\.0"):
        resolve("x/y", pass_options=pass_options)
    (folder / "x" / "y.yaml").write_text("")
    with pytest.raises(InternalError, match=r"a file of the library is not called name@version\.yaml"):
        list_recipes()
