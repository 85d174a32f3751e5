"""Errors of shape and of meaning: message, place and hint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from dmq_fx.errors import RecipeError
from dmq_fx.recipe import ModelFacts, problems_of, resolve

Failure = Callable[..., str]

HEAD = "dmq: 1\nname: a/b\nschemes:\n  w8: {weight: {bits: 8}}\n"
RULES = "rules:\n  - {match: {}, scheme: w8}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  w4: {weight: {bits: 17}}", "5:23: bits must be between 2 and 8, got 17"),
        ("  w4: {weight: {bits: eight}}", "5:23: bits must be an integer, got the string 'eight'"),
        ("  w4: {weight: {bits: 4.5}}", "5:23: bits must be an integer, got the number 4.5"),
        ("  w4: {weight: {bits: true}}", "5:23: bits must be an integer, got true"),
        (
            "  w4: {weight: {bits: 4, symetric: true}}",
            "5:26: unknown key 'symetric' in schemes.w4.weight\n  hint: did you mean 'symmetric'?",
        ),
        (
            "  w4: {weight: {bits: 4, symmetric: yes}}",
            "5:37: symmetric must be true or false, got the string 'yes'",
        ),
        ("  w4: {weight: {symmetric: true}}", "5:16: missing key 'bits' in schemes.w4.weight"),
        (
            "  w4: {weight: {bits: 4, range: minimax}}",
            "5:33: unknown range 'minimax'\n  hint: did you mean 'minmax'?",
        ),
        (
            "  w4: {weight: {bits: 4, granularity: x}}",
            "5:39: unknown granularity 'x'\n  hint: known: per_tensor, per_channel, per_group",
        ),
        (
            "  w4: {weight: {bits: 4, percentile: 50}}",
            "5:38: percentile must be greater than 50.0 and at most 100.0, got 50",
        ),
        ("  w4: {weight: 4}", "5:16: weight must be a mapping or 'none', got the integer 4"),
        (
            "  w4: {weight: }",
            "5:15: weight must be a mapping or 'none', got nothing\n"
            "  hint: an empty value is nothing; write `none` or `{}`, or leave the key out",
        ),
        (
            "  w4: {weight: none}",
            "5:7: the scheme 'w4' quantizes nothing\n"
            "  hint: give it `weight:` or `activation:`; for full precision a rule says `scheme: none`",
        ),
        (
            "  none: {weight: {bits: 4}}",
            "5:3: a scheme cannot be called 'none': that word means full precision",
        ),
        (
            "  w.4: {weight: {bits: 4}}",
            "5:3: the name of a scheme is made of letters, digits, '_', '+' and '-', got 'w.4'",
        ),
        (
            "calibraton: {steps: 3}",
            "5:1: unknown key 'calibraton'\n  hint: did you mean 'calibration'?",
        ),
        ("calibration: {steps: 0}", "5:22: steps must be between 1 and 1000, got 0"),
        ("calibration: [1]", "5:14: calibration must be a mapping, got a list"),
        (
            "calibration: {prompts: [3]}",
            "5:25: an entry of prompts must be a string, got the integer 3\n"
            "  hint: put it in quotes to make it a string",
        ),
        (
            "version: 1.0",
            "5:10: version must be a string, got the number 1.0\n  hint: put it in quotes to make it a string",
        ),
        ("version: one", "5:10: version must be a semantic version such as 1.0.0, got 'one'"),
        ('version: "1.0.0\\n"', "5:10: version must be a semantic version such as 1.0.0, got '1.0.0\\n'"),
        (
            "passes: [lse]",
            "5:10: unknown pass 'lse'\n  hint: did you mean 'les'?",
        ),
        (
            "passes: [lse: {}]",
            "5:10: unknown pass 'lse'\n  hint: did you mean 'les'?",
        ),
        (
            "passes: [les: {iteration: 3}]",
            "5:16: unknown key 'iteration' in passes.les\n  hint: did you mean 'iterations'?",
        ),
        (
            "passes: [les: {weighting: {kind: focall}}]",
            "5:34: unknown kind 'focall'\n  hint: did you mean 'focal'?",
        ),
        ("passes: [les: {limit: 0.5}]", "5:23: limit must be at least 1.0, got 0.5"),
        ("passes: [les: {limit: x}]", "5:23: limit must be a number or 'none', got the string 'x'"),
        (
            "passes: [les: {learning_rate: 1}]",
            "5:31: learning_rate must be greater than 0.0 and less than 1.0, got 1",
        ),
        ("passes: [les: {iterations: 13}]", "5:15: 13 iterations bring bad luck"),
        ("passes: [pts]", "5:10: the pass 'pts' needs options\n  hint: write `pts: {...}`"),
        ("passes: [pts: {}]", "5:15: missing key 'max_shift' in passes.pts"),
        ("passes: [5]", "5:10: an entry of passes must be a string or a mapping, got the integer 5"),
        (
            "passes: [{les: {}, split: {}}]",
            "5:10: an entry of passes names one pass, got les, split\n"
            "  hint: put each pass on a line of its own: `- name: {options}`",
        ),
        (
            "passes: [split, les, split]",
            "5:22: the pass 'split' is listed twice (first at line 5)\n  hint: a pass runs once",
        ),
        (
            "expect: {weight_megabyte: {max: 3}}",
            "5:10: unknown metric 'weight_megabyte' in expect\n  hint: did you mean 'weight_megabytes' or 'megabytes'?",
        ),
        ("expect: {final_mse: {}}", "5:21: the gate 'final_mse' has no limit\n  hint: give it `min:` or `max:`"),
        (
            "expect: {final_psnr: {min: 5, max: 1}}",
            "5:22: the gate 'final_psnr' cannot be met: min 5.0 is more than max 1.0",
        ),
    ],
)
def test_errors_outside_of_rules(failure: Failure, line: str, message: str) -> None:
    assert failure(f"{HEAD}{line}\n{RULES}") == f"recipe.yaml:{message}"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{match: {role: frist}, scheme: w8}", "6:20: unknown role 'frist'\n  hint: did you mean 'first'?"),
        ("{match: {op: [linear, conv2]}, scheme: w8}", "6:27: unknown op 'conv2'\n  hint: did you mean 'conv2d'"),
        ("{match: {op: []}, scheme: w8}", "6:18: op is empty\n  hint: leave the key out"),
        ("{match: {nam: x}, scheme: w8}", "6:14: unknown key 'nam' in rules[0].match\n  hint: did you mean 'name'?"),
        ("{match: {shape: [x]}, scheme: w8}", "6:22: an entry of shape must be '*' or an integer, got the string 'x'"),
        ("{match: {shape: [0]}, scheme: w8}", "6:22: an entry of shape must be at least 1, got 0"),
        (
            "{match: {min_channels: 9, max_channels: 8}, scheme: w8}",
            "6:28: min_channels 9 is more than max_channels 8",
        ),
        (
            '{match: {name: "re:("}, scheme: w8}',
            "6:20: 're:(' is not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        ("{match: {}, scheme: w88}", "6:25: unknown scheme 'w88'\n  hint: did you mean 'w8'?"),
        ("{match: {}, scheme: fp}", "6:25: unknown scheme 'fp'\n  hint: known: w8, none"),
        ("{match: {op: linear}}", "6:5: missing key 'scheme' in rules[0]"),
        (
            "{match: {}, scheme: w8, passes: les}",
            "6:37: the pass 'les' is not in the recipe's list of passes\n"
            "  hint: add it to `passes:` of the recipe (listed: none)",
        ),
        ("w8", "6:5: an entry of rules must be a mapping, got the string 'w8'"),
        (
            "{scheme: w8}\n  - {match: {op: linear}, scheme: none}",
            "7:5: this rule never applies: the rule at line 6 takes every site\n"
            "  hint: the first rule that matches wins: put the narrower rule first",
        ),
        (
            "{match: {op: linear}, scheme: w8}\n  - {match: {op: [linear]}, scheme: none}",
            "7:5: this rule never applies: the rule at line 6 takes the same sites",
        ),
    ],
)
def test_errors_in_rules(failure: Failure, rule: str, message: str) -> None:
    assert failure(f"{HEAD}rules:\n  - {rule}\n").startswith(f"recipe.yaml:{message}")


def test_a_recipe_without_rules(failure: Failure) -> None:
    hint = "\n  hint: add `rules:`, such as `- {match: {op: linear}, scheme: w8}`"
    assert failure(HEAD) == "recipe.yaml:1:1: the recipe has no rules" + hint
    assert failure(HEAD + "rules: []") == "recipe.yaml:5:8: the recipe has no rules" + hint


@pytest.mark.parametrize("name", ["b", "a/b/c/d", "../b", "a/", "a b/c", "-a/b"])
def test_names_of_recipes(failure: Failure, name: str) -> None:
    form = "name must be of the form family/name (letters, digits, '.', '_' and '-')"
    assert failure(HEAD.replace("a/b", name) + RULES) == f"recipe.yaml:2:7: {form}, got '{name}'"


def test_another_version_of_the_language_is_the_only_error(failure: Failure) -> None:
    assert failure("dmq: 3\nname: x\nnew_key: 3") == (
        "recipe.yaml:1:6: this is version 3 of the recipe language, and this dmq reads versions 1 to 2\n"
        "  hint: update dmq, or write the recipe in the older version"
    )


def test_all_errors_are_told_in_the_order_of_the_file(failure: Failure) -> None:
    assert failure("name: a/b\nrules:\n  - {match: {role: frist}, scheme: w4}\nschemes: {w: {weight: {bits: 1}}}") == (
        "recipe.yaml: 4 errors\n"
        "  recipe.yaml:1:1: missing key 'dmq'\n"
        "  recipe.yaml:3:20: unknown role 'frist'\n"
        "    hint: did you mean 'first'?\n"
        "  recipe.yaml:3:36: unknown scheme 'w4'\n"
        "    hint: did you mean 'w'?\n"
        "  recipe.yaml:4:30: bits must be between 2 and 8, got 1"
    )


def test_a_long_list_of_errors_is_cut_and_its_problems_are_not(folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "recipe.yaml").write_text(HEAD + "rules:\n" + "".join(f"  - {{scheme: {n}}}\n" for n in range(60)))
    with pytest.raises(RecipeError) as caught:
        resolve("recipe.yaml", pass_options=pass_options)
    problems = problems_of(caught.value)
    assert len(problems) == 60 + 59  # wrong types, and rules after the first that never apply
    assert str(caught.value).endswith("\n  and 69 more")
    assert problems[0].where == "recipe.yaml:6:14"
    assert problems[0].message == "scheme must be a string, got the integer 0"


UNUSED = """\
dmq: 1
name: a/b
schemes:
  w4: {weight: {bits: 4%s}, activation: {bits: 8%s}}
rules:
  - {match: {}, scheme: w4}
"""


@pytest.mark.parametrize(
    ("weight", "activation", "said"),
    [
        (", group_size: 32", "", "group_size is for `granularity: per_group`, and granularity is per_channel"),
        (", percentile: 99", "", "percentile is for `range: percentile`, and range is minmax"),
        (", percentile: 99, range: mse", "", "percentile is for `range: percentile`, and range is mse"),
        ("", ", percentile: 99", "percentile is for `range: percentile`, and range is ema_minmax"),
        ("", ", momentum: 0.5, range: mse", "momentum is for `range: ema_minmax`, and range is mse"),
    ],
)
def test_options_that_do_nothing(
    tmp_path: Path, pass_options: Mapping[str, type], weight: str, activation: str, said: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(UNUSED % (weight, activation))
    with pytest.raises(RecipeError) as caught:
        resolve(path, pass_options=pass_options)
    line = path.read_text().splitlines()[3]
    column = line.index(f"{said.split()[0]}: ") + len(f"{said.split()[0]}: ") + 1
    assert str(caught.value).startswith(f"{path}:4:{column}: {said}")
    assert "leave " in (caught.value.hint or "")


def test_options_that_do_something(tmp_path: Path, pass_options: Mapping[str, type]) -> None:
    """With the choice that they are for; a parent's, whose choice a child changes; a recipe that is written out."""
    parent, child, whole = (tmp_path / f"{name}.yaml" for name in ("parent", "child", "whole"))
    parent.write_text(UNUSED % (", group_size: 32, granularity: per_group", ", momentum: 0.5"))
    resolve(parent, pass_options=pass_options)
    child.write_text("dmq: 1\nname: a/c\nextends: ./parent.yaml\nschemes: {w4: {weight: {granularity: per_channel}}}\n")
    found = resolve(child, pass_options=pass_options)
    whole.write_text(yaml.safe_dump(found.document))
    assert resolve(whole, pass_options=pass_options).digest == found.digest


def test_overrides_that_do_nothing(tmp_path: Path, pass_options: Mapping[str, type]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(UNUSED % ("", ""))
    group = "schemes.w4.weight.group_size=32"
    for override in (group, "schemes.w4.weight={bits: 4, group_size: 32}"):
        with pytest.raises(RecipeError, match="group_size is for `granularity: per_group`") as caught:
            resolve(path, overrides=[override], pass_options=pass_options)
        assert (caught.value.where or "").startswith(f"--set {override}")
    choice = "schemes.w4.weight.granularity=per_group"
    with pytest.raises(RecipeError, match="percentile is for `range: percentile`, and range is mse"):
        two = ["schemes.w4.weight.percentile=99", "schemes.w4.weight.range=mse"]
        resolve(path, overrides=two, pass_options=pass_options)
    for overrides in ([group, choice], [choice, group], ["schemes.w4.weight={bits: 4}"]):
        resolve(path, overrides=overrides, pass_options=pass_options)


def test_options_for_choices_that_overlays_or_parameters_make(tmp_path: Path, pass_options: Mapping[str, type]) -> None:
    path = tmp_path / "r.yaml"
    head = UNUSED.replace("dmq: 1", "dmq: 2")
    overlay = "overlays:\n  - {when: {model_class: X}, schemes: {w4: {weight: {%s}}}}\n"
    for weight, other in (
        (", granularity: per_group, group_size: 32", "granularity: per_channel"),
        (", percentile: 99", "range: percentile"),
    ):
        path.write_text(head % (weight, "") + overlay % other)
        for model in (None, ModelFacts("X", "unet", 1), ModelFacts("Y", "unet", 1)):
            assert resolve(path, pass_options=pass_options, model=model).conditional
    path.write_text(head % (", percentile: 99", "") + overlay % "range: mse")
    with pytest.raises(RecipeError, match="percentile is for `range: percentile`"):
        resolve(path, pass_options=pass_options)
    parameters = "params: {how: {default: minmax, choices: [minmax, percentile]}}\n"
    path.write_text(head % (', range: "${how}", percentile: 99', "") + parameters)
    for params in ([], ["how=percentile"]):
        resolve(path, pass_options=pass_options, params=params)
