"""Why a site is as it is: the rule and where it stands, what it overrides, the numbers, the neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmq_fx.errors import ArtifactError, DmqError
from dmq_fx.inspection import Inspected, inspect_artifact
from dmq_fx.inspection.explain import explain_artifact, explain_plan
from dmq_fx.inspection.explain_text import explain_lines
from dmq_fx.inspection.origin import recipe_origin
from dmq_fx.inspection.why import scheme_reasons

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


def test_a_set_of_a_scheme_with_a_longer_name_is_none_of_this_one() -> None:
    overrides = ("schemes.a.weight.bits=2", "schemes.ab.weight.bits=3", "schemes.a.weight={bits: 4}", "schemes.ab=1")
    found = scheme_reasons([], overrides, "a")
    assert [(reason.where, reason.holds) for reason in found] == [
        ("--set schemes.a.weight={bits: 4}", True),
        ("--set schemes.a.weight.bits=2", False),
    ]


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


def test_an_artifact_of_a_library_recipe_tells_its_files(artifact: Path, edited, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The files that wrote rules and values, if they are those that were compiled; the lock alone if they are not."""
    found = inspect_artifact(artifact)
    why = explain_artifact(found, SITE, graph=False)
    (rule,) = why.rules
    assert rule.holds and "ptq/base@1.0.0.yaml:" in rule.where and "op: [conv1d, conv2d" in rule.text
    assert why.scheme and all("ptq/base@1.0.0.yaml:" in reason.where for reason in why.scheme)
    first = explain_artifact(found, "conv_in", graph=False)
    assert [reason.holds for reason in first.rules] == [True, False] and "role: [first, last]" in first.rules[0].text
    changed = {"recipe": {**found.recipe, "digest": "0" * 64}}
    other = explain_artifact(
        inspect_artifact(edited(artifact, tmp_path / "a", {"manifest": changed})), SITE, graph=False
    )
    assert all("recipe.lock.yaml:" in reason.where for reason in (*other.rules, *other.scheme))
    assert any("no values that were overridden" in note for note in other.notes)


def test_what_a_set_overrode_in_the_library_recipe() -> None:
    from dmq_fx.compiler import resolve_recipe
    from dmq_fx.pass_api import pass_options

    resolved = resolve_recipe("ptq/w4a8", ("schemes.body.weight.bits=5",), seed=3)
    lock = {"recipe": {"name": "ptq/w4a8", "version": "1.0.0"}, "overrides": list(resolved.overrides)}
    origin = recipe_origin(lock, resolved.digest, pass_options())
    assert origin is not None and recipe_origin(lock, "0" * 64, pass_options()) is None
    bits = [r for r in scheme_reasons(origin.files, lock["overrides"], "body") if "weight.bits" in r.text]
    assert [(r.text.rpartition(" ")[2], r.holds) for r in bits] == [("5", True), ("4", False), ("8", False)]
    assert [r.where.rpartition("/ptq/")[2].partition(":")[0] for r in bits[1:]] == [
        "w4a8@1.0.0.yaml",
        "base@1.0.0.yaml",
    ]
    for gone in ({"name": "mine/careful", "version": "1.0.0"}, None):
        assert recipe_origin({**lock, "recipe": gone}, resolved.digest, pass_options()) is None


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
