"""Why a site is as it is: the rule and where it stands, what it overrides, the numbers, the neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmq_fx.errors import ArtifactError, DmqError
from dmq_fx.inspection import Inspected
from dmq_fx.inspection.explain import explain_artifact, explain_plan
from dmq_fx.inspection.explain_text import explain_lines

CHILD = """dmq: 1
name: test/child
extends: ptq/w8a8@^1
schemes:
  body: {weight: {bits: 6}}
rules:
  - {match: {name: mid_block.*, op: conv2d}, scheme: body}
"""
SITE = "mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("child") / "child.yaml"
    path.write_text(CHILD)
    return path


def test_a_plan_names_the_rule_and_what_it_overrides(child: Path, pipeline_folder: Path) -> None:
    found = explain_plan(child, SITE, model=str(pipeline_folder))
    assert [reason.holds for reason in found.rules] == [True, False]
    assert found.rules[0].where == f"{child}:7:5" and "mid_block.*" in found.rules[0].text
    assert "ptq/base@1.0.0.yaml:" in found.rules[1].where
    bits = [reason for reason in found.scheme if reason.text.startswith("schemes.body.weight.bits")]
    assert [(reason.text, reason.holds) for reason in bits] == [
        ("schemes.body.weight.bits = 6", True),
        ("schemes.body.weight.bits = 8", False),
    ]
    assert bits[0].where.startswith(f"{child}:5:")
    assert dict(found.facts)["scheme"] == "W6 per-channel sym · A8 per-tensor asym ×20 slots (body)"


def test_a_plan_with_set(child: Path, pipeline_folder: Path) -> None:
    overrides = ("schemes.body.weight.bits=5", "rules.0.scheme=none", "rules.0.scheme=boundary")
    found = explain_plan(child, SITE, model=str(pipeline_folder), overrides=overrides[:1])
    values = [(reason.where, reason.holds) for reason in found.scheme if "weight.bits" in reason.text]
    assert values[0] == ("--set schemes.body.weight.bits=5", True) and not any(holds for _, holds in values[1:])
    other = explain_plan(child, SITE, model=str(pipeline_folder), overrides=overrides[1:])
    assert sum(reason.holds for reason in other.rules) == 1 and dict(other.facts)["scheme"].endswith("(boundary)")


def test_neighbours(child: Path, pipeline_folder: Path) -> None:
    lines = explain_plan(child, SITE, model=str(pipeline_folder)).neighbours
    at = next(index for index, line in enumerate(lines) if line.startswith("> conv2d"))
    assert SITE in lines[at] and "silu" in lines[at - 1] and "group_norm" in lines[at - 2]
    assert "add" in lines[at + 1]


def test_an_artifact_tells_the_numbers(found: Inspected) -> None:
    site = "up_blocks.0.resnets.0.conv_shortcut.decoder"
    why = explain_artifact(found, site)
    facts = dict(why.facts)
    assert facts["folds"].startswith("γ ") and "rank" in facts["kurtosis of the input"]
    assert "after scaling peak" in facts["input values"]
    assert [reason.holds for reason in why.rules].count(True) == 1
    lock = (found.path / "recipe.lock.yaml").read_text().splitlines()
    rule = next(reason for reason in why.rules if reason.holds)
    file, line, _ = rule.where.rsplit(":", 2)
    assert file.endswith("recipe.lock.yaml") and lock[int(line) - 1].startswith("- match:")
    numbers = dict(why.numbers)
    assert "shares" in numbers["pts shifts"] and any(name.startswith("smoothquant") for name in numbers)
    assert any("quantize_affine" in line for line in why.neighbours) and any(
        line.startswith(">") for line in why.neighbours
    )
    assert any("calibration.samples=8 is in the lock already" in note for note in why.notes)


def test_sites_that_share_integers_share_numbers(found: Inspected) -> None:
    """to_k reads what to_q reads; the pass reports gamma under the first of them."""
    key = next(row["name"] for row in found.rows if row["name"].endswith("to_k"))
    why = explain_artifact(found, key)
    assert any("to_q, which reads the same" in name for name, _ in why.numbers)


def test_without_the_graph(found: Inspected) -> None:
    why = explain_artifact(found, "conv_in", graph=False)
    assert why.neighbours == () and why.rules
    assert why.to_json()["site"] == "conv_in"
    text = "\n".join(str(line) for line in explain_lines(why))
    assert "decides" in text and "holds" in text and "in the graph" not in text


def test_sites_that_are_not_there(found: Inspected, pipeline_folder: Path) -> None:
    with pytest.raises(ArtifactError, match="did you mean 'conv_in'"):
        explain_artifact(found, "conv_inn")
    with pytest.raises(DmqError, match="did you mean 'conv_in'"):
        explain_plan("ptq/w8a8", "conv_inn", model=str(pipeline_folder))


def test_a_site_that_no_rule_takes(tmp_path: Path, pipeline_folder: Path) -> None:
    recipe = tmp_path / "few.yaml"
    recipe.write_text(
        "dmq: 1\nname: test/few\nschemes: {a: {weight: {bits: 8}}}\nrules: [{match: {op: conv2d}, scheme: a}]\n"
    )
    why = explain_plan(recipe, "mid_block.attentions.0.to_q", model=str(pipeline_folder))
    assert why.rules == () and dict(why.facts)["scheme"] == "full precision (none)"
    assert any("none: the site stays in full precision" in str(line) for line in explain_lines(why))
