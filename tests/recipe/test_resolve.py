"""Resolving: defaults, parents, references."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dmq_fx.errors import RecipeError
from dmq_fx.recipe import ActivationSpec, Match, Rule, WeightSpec, resolve

PARENT = """\
dmq: 1
name: family/parent
version: 2.1.0
summary: of the parent
source: arXiv:1
budget: full
backend: int8
calibration: {steps: 10, samples: 8}
schemes:
  body: {weight: {bits: 8, range: mse}, activation: {bits: 8}}
  edge: {weight: {bits: 8}}
rules:
  - {match: {role: first}, scheme: edge}
  - {match: {op: linear}, scheme: body}
  - {match: {op: conv2d}, scheme: body}
passes:
  - split
  - les: {iterations: 50, weighting: {kind: focal, gamma: 5}}
expect: {megabytes: {max: 9}}
"""
CHILD = """\
dmq: 1
name: family/child
extends: parent.yaml
calibration: {samples: 4}
schemes:
  body: {weight: {bits: 4}, activation: none}
rules:
  - {match: {op: linear}, scheme: edge}
passes: [pts: {max_shift: 3}, les: {weighting: {gamma: 7}}]
expect: {megabytes: {min: 1}}
"""


@pytest.fixture
def family(folder: Path) -> Path:
    (folder / "parent.yaml").write_text(PARENT)
    (folder / "child.yaml").write_text(CHILD)
    return folder


def error_of(reference: str | Path, pass_options: Mapping[str, type]) -> str:
    with pytest.raises(RecipeError) as caught:
        resolve(reference, pass_options=pass_options)
    return str(caught.value)


def test_a_short_recipe_gets_every_default(folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "r.yaml").write_text(
        "dmq: 1\nname: a/b\npasses: [les]\nschemes: {w: {weight: {bits: 8.0, percentile: 99, range: percentile}}}\n"
        "rules:\n  - {match: {op: linear, shape: [3, '*']}, scheme: w, passes: les}\n"
    )
    resolved = resolve("r.yaml", pass_options=pass_options)
    assert resolved.document == {
        "dmq": 1,
        "name": "a/b",
        "version": "0.0.0",
        "summary": "",
        "source": "",
        "budget": "standard",
        "calibration": {
            "sampler": "pipeline",
            "steps": 20,
            "samples": 64,
            "batch": 16,
            "seed": 0,
            "prompts": [],
            "guidance_scale": "none",
        },
        "schemes": {
            "w": {
                "weight": {
                    "bits": 8,
                    "symmetric": True,
                    "granularity": "per_channel",
                    "group_size": 64,
                    "range": "percentile",
                    "percentile": 99.0,
                },
                "activation": "none",
            }
        },
        "rules": [
            {"match": {"op": ["linear"], "shape": [3, "*"]}, "scheme": "w", "passes": ["les"], "optional": False}
        ],
        "passes": [
            {
                "les": {
                    "iterations": 100,
                    "learning_rate": 0.001,
                    "weighting": {"kind": "uniform", "gamma": 20.0},
                    "limit": "none",
                    "blocks": [],
                }
            }
        ],
        "expect": {},
        "backend": "fake_quant",
    }
    weight = resolved.recipe.schemes["w"].weight
    assert weight == WeightSpec(bits=8, range="percentile", percentile=99.0)
    assert weight is not None
    assert (type(weight.bits), type(weight.percentile)) == (int, float)
    assert resolved.recipe.rules == (
        Rule(match=Match(op=("linear",), shape=(3, "*")), scheme="w", passes=("les",), where="r.yaml:6:5"),
    )
    assert resolved.recipe.passes[0].options == pass_options["les"]()
    assert resolved.recipe.passes[0].where == "r.yaml:3:10"
    assert (resolved.parents, resolved.overrides) == ((), ())


def test_the_digest_is_of_the_meaning_and_not_of_the_text(folder: Path, pass_options: Mapping[str, type]) -> None:
    one = "dmq: 1\nname: a/b\npasses: [split]\nschemes: {w: {weight: {bits: 8}}}\nrules: [{scheme: w}]\n"
    same = (
        "# reordered, with a default written out\nname: a/b\nrules: [{match: {}, scheme: w, optional: false}]\n"
        "schemes: {w: {weight: {bits: 0x8, symmetric: true}, activation: none}}\npasses: [split: {}]\ndmq: 1\n"
    )
    digests = []
    for text in (one, same, one.replace("bits: 8", "bits: 7")):
        (folder / "r.yaml").write_text(text)
        digests.append(resolve("r.yaml", pass_options=pass_options).digest)
    assert digests[0] == digests[1] != digests[2]
    assert (
        digests[0] == "6dacaae7360f66062c7ab2c6442d866f391127f6c557f2410a65504ca289d895"
    )  # changes only with the language's keys and defaults


def test_a_child_over_its_parent(family: Path, pass_options: Mapping[str, type]) -> None:
    resolved = resolve(Path("child.yaml"), pass_options=pass_options)
    recipe = resolved.recipe
    assert (recipe.name, recipe.version, recipe.summary) == ("family/child", "0.0.0", "")
    assert (recipe.source, recipe.budget, recipe.backend) == ("arXiv:1", "full", "int8")
    assert (recipe.calibration.steps, recipe.calibration.samples) == (10, 4)
    assert recipe.schemes["body"].weight == WeightSpec(bits=4, range="mse")
    assert recipe.schemes["body"].activation is None
    assert [(rule.match, rule.scheme, rule.where) for rule in recipe.rules] == [
        (Match(op=("linear",)), "edge", "child.yaml:8:5"),
        (Match(role=("first",)), "edge", "parent.yaml:13:5"),
        (Match(op=("conv2d",)), "body", "parent.yaml:15:5"),
    ]
    assert [entry.name for entry in recipe.passes] == ["split", "les", "pts"]
    les = recipe.passes[1].options
    assert (les.iterations, les.weighting.kind, les.weighting.gamma) == (50, "focal", 7.0)
    assert (recipe.expect["megabytes"].min, recipe.expect["megabytes"].max) == (1.0, 9.0)
    assert "extends" not in resolved.document
    (parent,) = resolved.parents
    assert (parent.name, parent.version, len(parent.sha256)) == ("family/parent", "2.1.0", 64)


def test_a_mapping_replaces_a_parents_none(family: Path, pass_options: Mapping[str, type]) -> None:
    (family / "grandchild.yaml").write_text(
        "dmq: 1\nname: a/b\nextends: ./child.yaml\nschemes: {body: {activation: {bits: 6}}}\n"
    )
    resolved = resolve("grandchild.yaml", pass_options=pass_options)
    assert resolved.recipe.schemes["body"].activation == ActivationSpec(bits=6)
    assert [parent.name for parent in resolved.parents] == ["family/child", "family/parent"]


def test_a_catch_all_of_a_child_replaces_the_parents_rules(family: Path, pass_options: Mapping[str, type]) -> None:
    (family / "all.yaml").write_text("dmq: 1\nname: a/b\nextends: parent.yaml\nrules: [{match: {}, scheme: none}]\n")
    assert [rule.where for rule in resolve("all.yaml", pass_options=pass_options).recipe.rules] == ["all.yaml:4:9"]


def test_what_a_merge_lacks_is_told_at_its_place(family: Path, pass_options: Mapping[str, type]) -> None:
    (family / "r.yaml").write_text(
        "dmq: 1\nname: a/b\nextends: parent.yaml\nschemes:\n  new: {weight: {range: mse}}\n"
        "rules:\n  - {match: {op: matmul}, scheme: bodi}\n"
    )
    assert error_of("r.yaml", pass_options) == (
        "r.yaml: 2 errors\n"
        "  r.yaml:5:17: missing key 'bits' in schemes.new.weight\n"
        "  r.yaml:7:35: unknown scheme 'bodi'\n"
        "    hint: did you mean 'body'?"
    )


def test_errors_of_a_parent_name_the_parents_file(family: Path, pass_options: Mapping[str, type]) -> None:
    (family / "parent.yaml").write_text(PARENT.replace("range: mse", "range: mes"))
    assert error_of("child.yaml", pass_options) == (
        "parent.yaml:10:35: unknown range 'mes'\n  hint: did you mean 'mse'?"
    )


def test_errors_of_a_child_come_before_its_parent_is_read(failure: Callable[..., str]) -> None:
    text = "dmq: 1\nname: a/b\nextends: nowhere.yaml\nrules: [{scheme: 3}]\n"
    assert failure(text).startswith("recipe.yaml:4:18: scheme must be a string, got the integer 3")
    assert failure(text.replace("3", "w")) == "recipe.yaml:3:10: there is no file 'nowhere.yaml' to extend"
    assert failure(text.replace("nowhere.yaml", "ptq/w9a9").replace("3", "w")).startswith(
        "recipe.yaml:3:10: the library has no recipe 'ptq/w9a9'\n  hint: did you mean 'ptq/w"
    )
    assert failure(text.replace("nowhere.yaml", "[a, b]").replace("3", "w")) == (
        "recipe.yaml:3:10: extends must be a string, got a list\n"
        "  hint: several parents: it came with version 2 of the language: `dmq recipe migrate FILE` writes a file in it"
    )


def test_recipes_in_a_circle(folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "sub").mkdir()
    (folder / "a.yaml").write_text("dmq: 1\nname: a/a\nextends: sub/b.yaml\n")
    (folder / "sub" / "b.yaml").write_text("dmq: 1\nname: a/b\nextends: ../a.yaml\n")
    assert error_of("a.yaml", pass_options) == (
        "sub/b.yaml:3:10: recipes extend one another in a circle: a.yaml -> sub/b.yaml -> sub/../a.yaml"
    )


def test_a_chain_that_is_too_long(folder: Path, pass_options: Mapping[str, type]) -> None:
    for number in range(17):
        (folder / f"r{number}.yaml").write_text(f"dmq: 1\nname: a/b\nextends: r{number + 1}.yaml\n")
    message = error_of("r0.yaml", pass_options)
    assert message.startswith("r15.yaml:3:10: more than 16 recipes extend one another: r0.yaml -> r1.yaml -> ")
    assert message.endswith(" -> r15.yaml -> r16.yaml")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("none.yaml", "none.yaml: no such file"),
        (
            "ptq/w8a",
            "the library has no recipe 'ptq/w8a'\n  hint: did you mean 'ptq/w8a8'",
        ),
        (
            "w8a8",
            "'w8a8' is neither a recipe's name nor a file\n"
            "  hint: a library recipe is family/name@version, a file ends in .yaml",
        ),
        ("x" * 5000, "is neither a recipe's name nor a file"),
    ],
)
def test_references_to_nothing(folder: Path, pass_options: Mapping[str, type], reference: str, message: str) -> None:
    assert message in error_of(reference, pass_options)


def test_a_file_that_exists_needs_no_suffix(family: Path, pass_options: Mapping[str, type]) -> None:
    (family / "recipe").write_text(PARENT)
    assert resolve("recipe", pass_options=pass_options).recipe.name == "family/parent"


def test_the_language_needs_no_torch() -> None:
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "from dmq_fx.recipe import resolve\n"
        "print(json.dumps(resolve('ptq/w8a8', pass_options={}).document['name']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == "ptq/w8a8"
