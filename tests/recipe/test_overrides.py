"""`--set`: what can be changed, and the errors of what cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dmq_fx.recipe import resolve

TEXT = """\
dmq: 1
name: a/b
schemes:
  w8a8: {weight: {bits: 8}, activation: {bits: 8}}
  w4: {weight: {bits: 4}}
rules:
  - {match: {op: linear}, scheme: w8a8}
  - {match: {op: conv2d}, scheme: w4}
passes: [split, les: {iterations: 500}]
"""


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("passes.les.iterations=200", ["passes", 1, "les", "iterations"], 200),
        ("passes.les.weighting.kind=focal", ["passes", 1, "les", "weighting", "kind"], "focal"),
        ("passes.les.limit=3", ["passes", 1, "les", "limit"], 3.0),
        ("schemes.w8a8.weight.bits = 6", None, None),
        ("schemes.w8a8.activation=none", ["schemes", "w8a8", "activation"], "none"),
        ("schemes.w4.activation={bits: 5}", ["schemes", "w4", "activation", "bits"], 5),
        ("calibration.samples=32", ["calibration", "samples"], 32),
        ("calibration.prompts=[a cat, 'a=b']", ["calibration", "prompts"], ["a cat", "a=b"]),
        ("rules.0.scheme=none", ["rules", 0, "scheme"], "none"),
        ("rules.1.match.role=first", ["rules", 1, "match", "role"], ["first"]),
        ("rules.1.match.op.0=matmul", ["rules", 1, "match", "op"], ["matmul"]),
        ("expect.final_mse.max=1e-2", ["expect", "final_mse"], {"min": "none", "max": 0.01}),
        ("expect={bops: {min: 1}}", ["expect", "bops", "min"], 1.0),
        ("passes=[split]", ["passes"], [{"split": {}}]),
        ("name=c/d", ["name"], "c/d"),
        ("summary='1.0'", ["summary"], "1.0"),
        ("budget=quick", ["budget"], "quick"),
    ],
)
def test_values_that_can_be_set(
    folder: Path, pass_options: Mapping[str, type], override: str, path: list[Any] | None, value: Any
) -> None:
    (folder / "recipe.yaml").write_text(TEXT)
    resolved = resolve("recipe.yaml", overrides=[override], pass_options=pass_options)
    node: Any = resolved.document
    for step in path or ["schemes", "w8a8", "weight", "bits"]:
        node = node[step]
    assert node == (value if path else 6)
    assert resolved.overrides == (override,)
    assert resolved.digest != resolve("recipe.yaml", pass_options=pass_options).digest


def test_overrides_apply_in_order(folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "recipe.yaml").write_text(TEXT)
    overrides = ("expect.bops={min: 1, max: 2}", "expect.bops.min=2", "rules.0.passes=[les]")
    recipe = resolve("recipe.yaml", overrides=overrides, pass_options=pass_options).recipe
    assert (recipe.expect["bops"].min, recipe.expect["bops"].max) == (2.0, 2.0)
    assert recipe.rules[0].passes == ("les",)
    assert recipe.rules[0].where == "recipe.yaml:7:5"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("passes.lse.iterations=3", "this recipe has no pass 'lse'\n  hint: did you mean 'les'?"),
        ("passes.pts.max_shift=3", "this recipe has no pass 'pts'\n  hint: this recipe has: split, les"),
        ("passes.les.iteration=3", "unknown key 'iteration' in passes.les\n  hint: did you mean 'iterations'?"),
        ("passes.les.iterations=x", "iterations must be an integer, got the string 'x'"),
        ("passes.les.iterations=0", "iterations must be between 1 and 100000, got 0"),
        ("schemes.w8a9.weight.bits=3", "this recipe has no scheme 'w8a9'\n  hint: did you mean 'w8a8'?"),
        ("calibraton.steps=3", "unknown key 'calibraton'\n  hint: did you mean 'calibration'?"),
        ("calibration.step=3", "unknown key 'step' in calibration\n  hint: did you mean 'steps'"),
        ("rules.2.scheme=none", "rules has no entry '2'\n  hint: entries are numbered: 0 to 1"),
        ("rules.-1.scheme=none", "rules has no entry '-1'\n  hint: entries are numbered: 0 to 1"),
        ("calibration.prompts.0=x", "calibration.prompts has no entry '0'\n  hint: entries are numbered: it is empty"),
        ("rules.0.scheme=w5", "unknown scheme 'w5'\n  hint: known: w8a8, w4, none"),
        (
            "schemes.w4.activation.bits=8",
            "schemes.w4.activation is 'none' and has no key 'bits'\n"
            "  hint: give it a whole value: `--set 'schemes.w4.activation={bits: ...}'`",
        ),
        ("budget=qick", "unknown budget 'qick'\n  hint: did you mean 'quick'?"),
        ("name.x=3", "name is 'a/b' and has no key 'x'"),
        ("extends=ptq/w8a8", "'extends' belongs to a file and cannot be overridden"),
        ("lock.seed=3", "'lock' belongs to a file and cannot be overridden"),
        ("calibration.steps", "not of the form key.path=value\n  hint: write `--set key.path=value`, such as"),
        ("calibration..steps=3", "not of the form key.path=value"),
        ("=3", "not of the form key.path=value"),
        ("calibration.steps=", "no value for 'calibration.steps'\n  hint: write `none` for no value"),
        ("calibration.steps=[", "not valid YAML: while parsing a flow node: expected the node content"),
        ("calibration.steps=!!int 3", "the tag 'tag:yaml.org,2002:int' is not part of the recipe language"),
        ("expect.bops={min: 1, min: 2}", "the key 'min' is written twice\n  hint: keep one of the two"),
        ("expect.bops={}", "the gate 'bops' has no limit"),
    ],
)
def test_values_that_cannot_be_set(failure: Callable[..., str], override: str, message: str) -> None:
    assert failure(TEXT, override).startswith(f"--set {override}: {message}")


def test_a_rule_that_an_override_makes_unreachable(failure: Callable[..., str]) -> None:
    assert failure(TEXT, "rules.0.match={}").startswith(
        "recipe.yaml:8:5: this rule never applies: the rule at line 7 takes every site"
    )
