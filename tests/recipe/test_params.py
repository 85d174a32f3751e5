"""`params:`, `${...}` and `-p`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dmq_fx.errors import RecipeError
from dmq_fx.recipe import lock_document, lock_text, resolve, write_lock

RECIPE = """\
dmq: 2
name: lab/uniform
version: 1.0.0
summary: W${w_bits}A${a_bits}, $${w_bits} is text
params:
  w_bits: {default: 4, minimum: 2, maximum: 8, help: bits of a weight}
  a_bits: {type: integer, default: 8, choices: [6, 8]}
  gamma: {type: number, default: 20}
  search: {default: mse}
  timesteps: {default: true}
schemes:
  body:
    weight: {bits: "${w_bits}", range: "${search}"}
    activation: {bits: "${a_bits}", per_timestep: "${timesteps}"}
passes:
  - les: {weighting: {kind: focal, gamma: "${gamma}"}}
rules:
  - {match: {}, scheme: body}
"""


def error_of(text: str, folder: Path, pass_options: Mapping[str, type], *params: str) -> str:
    (folder / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        resolve("r.yaml", pass_options=pass_options, params=params)
    return str(caught.value)


def test_one_file_gives_many_recipes(folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "r.yaml").write_text(RECIPE)
    digests = set()
    for bits in range(2, 9):
        resolved = resolve("r.yaml", pass_options=pass_options, params=[f"w_bits={bits}"])
        weight, activation = resolved.recipe.schemes["body"].weight, resolved.recipe.schemes["body"].activation
        assert weight and activation
        assert (weight.bits, weight.range, activation.bits, activation.per_timestep) == (bits, "mse", 8, True)
        assert resolved.recipe.summary == f"W{bits}A8, ${{w_bits}} is text"
        assert resolved.params["w_bits"] == bits
        assert "params" not in resolved.document
        digests.add(resolved.digest)
    assert len(digests) == 7
    options = resolved.recipe.passes[0].options
    assert isinstance(options.weighting.gamma, float) and options.weighting.gamma == 20.0


def test_the_last_value_of_a_name_counts_and_overrides_come_after(
    folder: Path, pass_options: Mapping[str, type]
) -> None:
    (folder / "r.yaml").write_text(RECIPE)
    resolved = resolve(
        "r.yaml",
        pass_options=pass_options,
        params=["w_bits=3", "w_bits=5", "timesteps=false"],
        overrides=["schemes.body.weight.bits=6"],
    )
    scheme = resolved.recipe.schemes["body"]
    assert scheme.weight and scheme.activation
    assert (scheme.weight.bits, scheme.activation.per_timestep, resolved.params["w_bits"]) == (6, False, 5)


def test_a_lock_records_values_and_resolves_to_itself(folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "r.yaml").write_text(RECIPE)
    resolved = resolve("r.yaml", pass_options=pass_options, params=["w_bits=3"])
    document = lock_document(resolved, model={}, environment={}, seed=0)
    assert document["lock"]["params"]["w_bits"] == 3
    assert document["lock"]["recipe"] == {
        "name": "lab/uniform",
        "version": "1.0.0",
        "sha256": resolved.file.sha256 if resolved.file else "",
        "origin": "file",
    }
    again = resolve(write_lock("r.lock.yaml", document), pass_options=pass_options)
    assert (again.document, again.digest, again.params) == (resolved.document, resolved.digest, resolved.params)
    assert again.recipe.summary == resolved.recipe.summary == "W3A8, ${w_bits} is text"
    assert lock_text(lock_document(again, model={}, environment={}, seed=0)) == (folder / "r.lock.yaml").read_text()
    with pytest.raises(RecipeError, match="the recipe has no parameter 'w_bits'"):
        resolve("r.lock.yaml", pass_options=pass_options, params=["w_bits=3"])


def test_a_child_uses_changes_and_adds_parameters(folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "parent.yaml").write_text(RECIPE)
    (folder / "r.yaml").write_text(
        "dmq: 2\nname: lab/child\nextends: parent.yaml\nparams:\n  w_bits: {default: 3}\n  steps: {default: 7}\n"
        "calibration:\n  steps: ${steps}\n  batch: ${w_bits}\n"
    )
    resolved = resolve("r.yaml", pass_options=pass_options)
    weight = resolved.recipe.schemes["body"].weight
    assert weight and (weight.bits, resolved.recipe.calibration.steps, resolved.recipe.calibration.batch) == (3, 7, 3)
    with pytest.raises(RecipeError, match="the parameter 'w_bits' must be at most 8, got 9"):
        resolve("r.yaml", pass_options=pass_options, params=["w_bits=9"])
    (folder / "old.yaml").write_text("dmq: 1\nname: lab/old\nextends: parent.yaml\nsummary: ${w_bits}\n")
    old = resolve("old.yaml", pass_options=pass_options)  # its own text stays text
    assert (old.recipe.summary, old.document["dmq"], old.document["summary"]) == ("${w_bits}", 2, "$${w_bits}")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (["w_bits=9"], "-p w_bits=9: the parameter 'w_bits' must be at most 8, got 9"),
        (["w_bits=four"], "-p w_bits=four: the parameter 'w_bits' must be an integer, got the string 'four'"),
        (["w_bits=true"], "-p w_bits=true: the parameter 'w_bits' must be an integer, got true"),
        (["a_bits=7"], "-p a_bits=7: the parameter 'a_bits' must be one of 6, 8, got 7"),
        (["timesteps=1"], "-p timesteps=1: the parameter 'timesteps' must be true or false, got the integer 1"),
        (["search=mes"], "r.yaml:13:40: unknown range 'mes'\n  hint: did you mean 'mse'?"),
        (["w_bit=4"], "-p w_bit=4: the recipe has no parameter 'w_bit'\n  hint: did you mean 'w_bits' or 'a_bits'?"),
        (["w_bits"], "-p w_bits: not of the form name=value\n  hint: write `-p name=value`, such as `-p w_bits=4`"),
        (["w_bits="], "-p w_bits=: no value for 'w_bits'"),
        (["w_bits=!!int 3"], "the tag 'tag:yaml.org,2002:int' is not part of the recipe language"),
    ],
)
def test_values_that_do_not_fit(
    folder: Path, pass_options: Mapping[str, type], params: list[str], message: str
) -> None:
    assert message in error_of(RECIPE, folder, pass_options, *params)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${HOME}", "r.yaml:4:10: unknown parameter 'HOME'\n  hint: declared: x; write $${ for the text itself"),
        ("${X}", "r.yaml:4:10: unknown parameter 'X'\n  hint: did you mean"),
        ("a ${x", "r.yaml:4:10: a `${` without its `}`\n  hint: write $${ for the text itself"),
        ("${x + 1}", "r.yaml:4:10: `${x + 1}` is not the name of a parameter\n  hint: there are no expressions"),
        ("${x:-ls}", "r.yaml:4:10: `${x:-ls}` is not the name of a parameter"),
        ("${}", "r.yaml:4:10: `${}` is not the name of a parameter"),
    ],
)
def test_nothing_but_parameters_stands_behind_a_dollar(
    folder: Path, pass_options: Mapping[str, type], text: str, message: str
) -> None:
    recipe = f"dmq: 2\nname: a/b\nparams: {{x: {{default: 1}}}}\nsummary: {text}\nrules: [{{scheme: none}}]\n"
    if text == "${X}":
        recipe = recipe.replace("{x:", "{XX:")
    assert message in error_of(recipe, folder, pass_options)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{x: {type: integer}}", "r.yaml:3:13: the parameter 'x' has no default"),
        ("{x: {default: 1, type: string}}", "r.yaml:3:23: the parameter 'x' must be a string, got the integer 1"),
        ("{x: {default: 1, minimum: 2}}", "r.yaml:3:23: the parameter 'x' must be at least 2, got 1"),
        ("{1x: {default: 1}}", "the name of a parameter is made of letters, digits and '_', got '1x'"),
        ("{x: 4}", "r.yaml:3:13: x must be a mapping, got the integer 4"),
        ("{x: {defualt: 4}}", "unknown key 'defualt' in params.x\n  hint: did you mean 'default'?"),
    ],
)
def test_declarations_that_are_wrong(folder: Path, pass_options: Mapping[str, type], block: str, message: str) -> None:
    recipe = f"dmq: 2\nname: a/b\nparams: {block}\nsummary: ${{x}}\nrules: [{{scheme: none}}]\n"
    assert message in error_of(recipe, folder, pass_options)


def test_what_a_recipe_is_cannot_be_a_parameter(failure: Callable[..., str]) -> None:
    head = "dmq: 2\nname: a/b\nparams: {x: {default: 1}}\nrules: [{scheme: none}]\nsummary: ${x}\n"
    assert "version must be a semantic version such as 1.0.0, got '${x}.0.0'" in failure(head + "version: ${x}.0.0")
    assert "'ptq/w${x}' is neither a recipe's name nor a file" in failure(head + "extends: ptq/w${x}")


def test_version_1_has_no_parameters(failure: Callable[..., str]) -> None:
    assert failure("dmq: 1\nname: a/b\nparams: {x: {default: 1}}\nrules: [{scheme: none}]") == (
        "recipe.yaml:3:1: unknown key 'params'\n"
        "  hint: it came with version 2 of the language: `dmq recipe migrate FILE` writes a file in it"
    )
