"""Bytes and YAML that a recipe cannot be made of, each with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.source import read_recipe_text, read_source
from dmq_fx.recipe.tree import Position


def test_every_value_and_key_knows_its_place() -> None:
    tree = read_recipe_text("# a comment\nname: a/b\nschemes:\n  w4: {weight: {bits: 4}}\n", "r.yaml")
    assert tree.plain() == {"name": "a/b", "schemes": {"w4": {"weight": {"bits": 4}}}}
    bits = tree.at(["schemes", "w4", "weight"])
    assert bits.keys["bits"] == Position("r.yaml", 4, 17)
    assert str(bits.at(["bits"]).where) == "r.yaml:4:23"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("off", "off"),
        ("~", None),
        ("", None),
        ("017", 17),
        ("0x1f", 31),
        ("-3", -3),
        ("1e-3", 1e-3),
        ("4.", 4.0),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'3'", "3"),
        ('"true"', "true"),
        ("1.0.0", "1.0.0"),
        ("none", "none"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    read = read_recipe_text(f"key: {text}", "r.yaml").plain()["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: the recipe is empty\n  hint: a recipe begins with `dmq: 1` and a `name:`"),
        ("# nothing\n---\n", "r.yaml: the recipe is empty\n  hint: a recipe begins with `dmq: 1` and a `name:`"),
        ("- 1", "r.yaml:1:1: a recipe is a mapping, got a list"),
        ("just text", "r.yaml:1:1: a recipe is a mapping, got the string 'just text'"),
        ("a: 1\n\tb: 2", "r.yaml:2:1: not valid YAML: while scanning for the next token: found character '\\t' that"),
        ("a: [1, 2", "r.yaml:1:9: not valid YAML: while parsing a flow sequence: expected ',' or ']'"),
        ("a: 1\nb: c: 2", "r.yaml:2:5: not valid YAML: mapping values are not allowed here"),
        ("shape: [64, *, 3]", "hint: write the value out; text that begins with * or & needs quotes"),
        ('a: "\\U99999999"', "r.yaml:1:7: not valid YAML: the number of an escape or a directive is out of range"),
        (
            "a: 1\nb: 2\na: 3",
            "r.yaml:3:1: the key 'a' is written twice (first at line 1)\n  hint: keep one of the two",
        ),
        (
            "a: &x [1]\nb: *x",
            "r.yaml: 2 errors\n"
            "  r.yaml:1:4: the anchor &x is not part of the recipe language\n"
            "    hint: write the value out; text that begins with * or & needs quotes\n"
            "  r.yaml:2:4: the alias *x is not part of the recipe language\n"
            "    hint: write the value out; text that begins with * or & needs quotes",
        ),
        (
            "a: !!python/object/apply:os.system ['true']",
            "r.yaml:1:4: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not part of the recipe language\n"
            "  hint: remove it; a recipe holds plain data only",
        ),
        ("a: !!str 5", "r.yaml:1:4: the tag 'tag:yaml.org,2002:str' is not part of the recipe language"),
        (
            "a:\n  <<: {b: 1}",
            "r.yaml:2:3: the merge key << is not part of the recipe language\n"
            "  hint: schemes and passes are shared with `extends`",
        ),
        ("1: a", "r.yaml:1:1: a key must be a string, and 1 is not\n  hint: put it in quotes"),
        ("null: a", "r.yaml:1:1: a key must be a string, and null is not\n  hint: put it in quotes"),
        ("? [a]\n: b", "r.yaml:1:3: a key must be a string, and this one is not"),
        ("a: .nan", "r.yaml:1:4: .nan is not a finite number"),
        ("a: -.inf", "r.yaml:1:4: -.inf is not a finite number"),
        ("a: 1e999", "r.yaml:1:4: 1e999 is too large for a number"),
        (
            "a: " + "9" * 5000,
            "r.yaml:1:4: an integer of 5000 digits is too long; integers must fit in 64 bits",
        ),
        ("a: 9223372036854775808", "r.yaml:1:4: an integer of 19 digits is too long; integers must fit in 64 bits"),
        ("a: b\x00c", "r.yaml:1:5: the character U+0000 is not allowed in a recipe"),
        ("a: 1\nb: '\x1b[31m'", "r.yaml:2:5: the character U+001B is not allowed in a recipe"),
        ('a: "\\0"', "r.yaml:1:4: the character U+0000 is not allowed in a recipe"),
        ('a: "\\ud800"', "r.yaml:1:4: the character U+D800 is not allowed in a recipe"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1: a recipe file holds one document, and a second one starts here"),
        ("a: " + "[" * 50, "r.yaml:1:36: nested more than 32 levels deep"),
        ("a: [" + "1," * 30_000, "r.yaml:1:39999: more than 20,000 values, which no recipe has"),
    ],
)
def test_what_is_not_a_recipe(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe_text(text, "r.yaml")
    assert message in str(caught.value)


def test_an_expansion_bomb_is_refused_at_its_first_anchor() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 20)]
    with pytest.raises(RecipeError, match=r"r\.yaml:1:5: the anchor &a0 is not part of the recipe language"):
        read_recipe_text("\n".join(lines), "r.yaml")


def test_bytes_that_are_not_utf8(folder: Path) -> None:
    (folder / "latin.yaml").write_bytes("dmq: 1\nsummary: é".encode("latin-1"))
    with pytest.raises(RecipeError) as caught:
        read_source(Path("latin.yaml"))
    assert str(caught.value) == "latin.yaml:2:10: the byte 0xe9 is not UTF-8 text\n  hint: save the file as UTF-8"


def test_a_byte_order_mark_is_not_part_of_the_text(folder: Path) -> None:
    (folder / "bom.yaml").write_bytes(b"\xef\xbb\xbfdmq: 1\n")
    assert read_source(Path("bom.yaml")).tree.plain() == {"dmq": 1}


def test_a_huge_file_is_not_parsed(folder: Path) -> None:
    (folder / "huge.yaml").write_bytes(b"[" * 10_000_000)
    with pytest.raises(RecipeError) as caught:
        read_source(Path("huge.yaml"))
    assert str(caught.value) == (
        "huge.yaml: the file is larger than 1,000,000 bytes, which no recipe is\n"
        "  hint: is this a recipe, and not a model or a log?"
    )


def test_files_that_cannot_be_read(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("dmq: 1")
    (folder / "folder.yaml").mkdir()
    messages = {
        "recipes.yaml": "recipes.yaml: no such file\n  hint: did you mean 'recipe.yaml'?",
        "nowhere/r.yaml": "nowhere/r.yaml: no such file\n  hint: there is no directory 'nowhere'",
        "folder.yaml": "folder.yaml: this is a directory, not a recipe file",
        "recipe.yaml/x.yaml": "recipe.yaml/x.yaml: cannot read the file: Not a directory",
    }
    for name, message in messages.items():
        with pytest.raises(RecipeError) as caught:
            read_source(Path(name))
        assert str(caught.value) == message
