"""`fmt` and `migrate`: files written anew with their comments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmq_fx.errors import RecipeError
from dmq_fx.recipe import list_recipes, resolve
from dmq_fx.recipe.dump import to_yaml
from dmq_fx.recipe.formatting import format_text, migrate_text
from dmq_fx.recipe.language import LANGUAGE_VERSION
from dmq_fx.recipe.source import read_recipe_text

GOLDEN = Path(__file__).parent / "golden" / "migrate"
UNTIDY = """\
# head

dmq:   1
name:    "a/b"     # quoted

rules:
# the only rule
- {match:  {op: [conv2d,linear]},scheme:   none}   # all
- match:
      role: first
  scheme: none\x20\x20
expect: {final_mse: {max: 1e-3}}


# tail
"""
TIDY = """\
# head

dmq: 1
name: "a/b"        # quoted

rules:
# the only rule
  - {match: {op: [conv2d, linear]}, scheme: none}  # all
  - match:
      role: first
    scheme: none
expect: {final_mse: {max: 1e-3}}


# tail
"""


def test_spaces_change_and_nothing_else() -> None:
    assert format_text(UNTIDY, "r.yaml") == TIDY
    assert format_text(TIDY, "r.yaml") == TIDY
    assert format_text(UNTIDY.replace("\n", "\r\n"), "r.yaml") == TIDY


@pytest.mark.parametrize("entry", list_recipes(), ids=lambda entry: entry.reference)
def test_the_library_keeps_its_comments(entry: Any) -> None:
    text = entry.path.read_text("utf-8")
    written = format_text(text, "r.yaml")
    assert format_text(written, "r.yaml") == written
    assert [line.strip() for line in written.splitlines() if "#" in line] == [
        line.strip() for line in text.splitlines() if "#" in line
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dmq: [1", "r.yaml:1:8: not valid YAML"),
        ("a: &x 1\nb: *x\n", "the anchor &x is not part of the recipe language"),
        ("", "the recipe is empty"),
        ("a: 1\n---\nb: 2\n", "a recipe file holds one document"),
    ],
)
def test_what_is_no_recipe_is_not_formatted(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        format_text(text, "r.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("a: [x, # one\n  y] # two\n", "# one"),  # ruamel.yaml keeps no comments inside of braces
        ("a: {\n  # inside\n  x: 1,\n}\n", "# inside"),
        ("a:\n  # before\n  - x # x\n  # between\n\n  # more\n  - y\n# after\nb: 1 # b\n# end\n", None),
        ("# head\n\n# second\na: # of a\n  b: 1\n", None),
    ],
)
def test_no_comment_is_lost(text: str, lost: str | None) -> None:
    if lost is not None:
        with pytest.raises(RecipeError) as caught:
            format_text(text, "r.yaml")
        assert caught.value.message == f"a comment of this file cannot be kept: {lost!r}"
        return
    assert re.findall("#.*", format_text(text, "r.yaml")) == re.findall("#.*", text)


SCALARS = (
    st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=10)
    | st.sampled_from(
        ["1e3", "yes", "017", "0o7", "1:30", "~", "null", "=", "- x", "a: b", "# c", " x", "${w}", "x\ny"]
    )
)
KEYS = st.text("abcdefg", min_size=1, max_size=4)
DOCUMENTS = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(
    DOCUMENTS, st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["", "# note", "   # note", "#"])), max_size=4)
)
def test_formatting_again_changes_nothing(document: dict[str, Any], notes: list[tuple[int, str]]) -> None:
    lines = to_yaml(document).splitlines()
    for place, note in notes:
        lines.insert(min(place, len(lines)), note)
    text = "\n".join(lines) + "\n"
    try:
        meaning = read_recipe_text(text, "r.yaml").plain()
    except RecipeError:
        return  # a note inside a text of several lines
    try:
        once = format_text(text, "r.yaml")
    except RecipeError as error:
        assert "cannot be" in error.message  # refused; the file is left as it is
        return
    assert read_recipe_text(once, "r.yaml").plain() == meaning
    assert format_text(once, "r.yaml") == once


@pytest.mark.parametrize("version", range(1, LANGUAGE_VERSION))
def test_every_step_of_the_language(version: int) -> None:
    before = (GOLDEN / f"{version}-to-{version + 1}.before.yaml").read_text()
    after = (GOLDEN / f"{version}-to-{version + 1}.after.yaml").read_text()
    assert migrate_text(before, "r.yaml") == (after, version)
    assert migrate_text(after, "r.yaml") == (after, version + 1)


def test_a_migrated_recipe_means_the_same(folder: Path, pass_options: Mapping[str, type]) -> None:
    text = (GOLDEN / "1-to-2.before.yaml").read_text()
    (folder / "old.yaml").write_text(text)
    (folder / "new.yaml").write_text(migrate_text(text, "old.yaml")[0])
    old, new = (resolve(f"{name}.yaml", pass_options=pass_options) for name in ("old", "new"))
    assert old.recipe.calibration == new.recipe.calibration
    assert old.recipe.calibration.prompts[0] == "a photo of ${subject}"
    assert old.recipe.schemes == new.recipe.schemes and old.recipe.summary == new.recipe.summary
    assert [rule.match for rule in old.recipe.rules] == [rule.match for rule in new.recipe.rules]
    assert (old.document["dmq"], new.document["dmq"]) == (1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dmq: 3\nname: a/b\n", "the file says version 3 of the recipe language, and this dmq reads versions 1 to 2"),
        ("name: a/b\n", "the file says no version of the recipe language"),
        ("dmq: 1\nname: a/b\nlock: {sha256: x}\n", "a lock stays as it was written"),
    ],
)
def test_what_is_not_migrated(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        migrate_text(text, "r.yaml")
    assert message in str(caught.value)
