"""What differs: rules, schemes, sites, sizes, errors; and that equal things are equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmq_fx.errors import DmqError, ModelError, RecipeError
from dmq_fx.inspection import sides
from dmq_fx.inspection.diff import Change, Difference, difference
from dmq_fx.inspection.diff_report import diff_html
from dmq_fx.inspection.diff_text import diff_lines
from dmq_fx.inspection.sides import Side, load_sides

CHILD = """dmq: 1
name: test/child
extends: ptq/w8a8@^1
calibration: {samples: 32}
rules:
  - {match: {name: mid_block.*, op: conv2d}, scheme: careful}
schemes:
  careful: {weight: {bits: 6}}
passes:
  - bias_correction: {}
"""


def compare(a: str | Path, b: str | Path, **options: str) -> Difference:
    return difference(*load_sides(str(a), str(b), **options))


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("child") / "child.yaml"
    path.write_text(CHILD)
    return path


def test_two_recipes(child: Path, pipeline_folder: Path) -> None:
    found = compare("ptq/w8a8", child, model=str(pipeline_folder))
    changes = {change.what: (change.a, change.b) for change in found.recipe}
    assert changes["calibration.samples"] == (64, 32)
    assert changes["schemes.careful"][0] is None and changes["schemes.careful"][1]["weight"]["bits"] == 6
    assert changes["rule name: [mid_block.*], op: [conv2d]"] == (None, {"scheme": "careful", "optional": False})
    assert changes["passes.bias_correction"][0] is None
    sites = {change.site: change for change in found.sites}
    conv = sites["mid_block.resnets.0.conv1"]
    assert {"scheme", "weight bits", "activation bits"} <= set(conv.changed)
    assert conv.a["weight bits"] == 8 and conv.b["weight bits"] == 6 and conv.b["activation bits"] == 32
    assert sites["conv_in"].changed == ("passes",)
    assert any(change.what == "bytes" and change.b < change.a for change in found.size)
    assert found.notes == ("folds, errors and files are not compared: that takes two artifacts",) and not found.same


def test_order_of_rules_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are compared where the model that nobody asked for is not there."""

    monkeypatch.setattr(sides, "DEFAULT_MODEL", "nowhere")
    head = "dmq: 1\nname: test/order\nschemes: {a: {weight: {bits: 8}}, b: {weight: {bits: 4}}}\nrules:\n"
    rules = ["  - {match: {op: conv2d}, scheme: a}\n", "  - {match: {role: first}, scheme: b}\n"]
    (tmp_path / "a.yaml").write_text(head + "".join(rules))
    (tmp_path / "b.yaml").write_text(head + "".join(reversed(rules)))
    same = load_sides(str(tmp_path / "b.yaml"), str(tmp_path / "b.yaml"))
    assert same[0].rows is None and difference(*same).same
    documents = [load_sides(str(tmp_path / f"{n}.yaml"), "ptq/w8a8")[0] for n in "ab"]
    assert [change.what for change in difference(*documents).recipe] == ["order of rules"]


def test_a_model_that_was_asked_for_must_be_there() -> None:
    """Nothing differs in a plan that was not made."""
    with pytest.raises(ModelError, match="there is no builtin model 'mnist'"):
        load_sides("ptq/w4a8", "ptq/w4a8", model="builtin:mnist")


def test_rules_that_match_the_same_are_all_compared() -> None:
    """A child's rule may match what its parent's does, and then the first of the two decides."""
    rules = [{"match": {"op": ["conv2d"]}, "scheme": scheme} for scheme in ("a", "b", "c")]
    sides = [
        Side(name, "recipe", {"rules": some}) for name, some in (("A", [rules[0], rules[1]]), ("B", rules[2:0:-1]))
    ]
    found = difference(*sides)
    assert found.recipe == (Change("rule op: [conv2d].scheme", "a", "c"),) and not found.same
    shorter = difference(sides[0], Side("B", "recipe", {"rules": [rules[0]]}))
    assert [change.what for change in shorter.recipe] == ["rule op: [conv2d] (rule 2 of these)"]


def test_two_artifacts(artifact: Path, folded: Path) -> None:
    found = compare(artifact, folded)
    sites = {change.site: change for change in found.sites}
    assert (
        sites["up_blocks.0.resnets.0.conv_shortcut"].b == {}
        and sites["up_blocks.0.resnets.0.conv_shortcut.decoder"].a == {}
    )
    conv = sites["mid_block.resnets.0.conv1"]
    assert {"scheme", "weight bits", "folds", "kB", "SQNR dB"} <= set(conv.changed)
    assert conv.a["SQNR dB"] > conv.b["SQNR dB"] and "γ" in conv.b["folds"]
    assert {change.what for change in found.trajectory} == {
        "trajectory_mse",
        "prediction_mse",
        "prediction_mse_same_input",
    }
    assert {change.what for change in found.error} >= {"worst site, SQNR dB", "mean trajectory_mse"}
    assert {change.what for change in found.files} >= {"model.safetensors", "quantization.json"}
    assert "config.json" not in {change.what for change in found.files}
    assert json.loads(json.dumps(found.to_json()))["same"] is False


def test_the_same_twice(artifact: Path) -> None:
    found = compare(artifact, artifact)
    assert found.same and found.notes == ()
    assert "nothing differs" in [str(line) for line in diff_lines(found)]
    lock = artifact / "recipe.lock.yaml"
    assert compare(lock, lock).same


def test_a_lock_is_planned_for_its_own_model(artifact: Path) -> None:
    found = compare(artifact / "recipe.lock.yaml", artifact)
    assert found.a.kind == "lock" and found.a.rows is not None
    assert found.same and found.notes  # the plan of the lock is what was compiled


def test_what_cannot_be_planned_is_compared_as_text(child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sides, "DEFAULT_MODEL", "builtin:ddpm-mnistt")
        found = compare("ptq/w8a8", child)
    assert found.sites == () and found.recipe
    assert any("ptq/w8a8 was not planned for builtin:ddpm-mnistt" in note for note in found.notes)
    with pytest.raises(RecipeError, match=r"the library has no recipe(.|\n)*did you mean(.|\n)*folder is not there"):
        compare("ptq/w8a9", child)
    with pytest.raises(RecipeError, match=r"neither a recipe's name nor a file(.|\n)*folder is not there"):
        compare("/nowhere", child)


def test_a_model_for_two_artifacts(artifact: Path, folded: Path) -> None:
    """They were compiled for theirs: another one would be left out silently."""
    with pytest.raises(DmqError, match="for no other model") as error:
        compare(artifact, folded, model="builtin:ddpm-mnist")
    assert error.value.where == "--model"


@pytest.mark.parametrize("lock", ["5", "{model: 5}", "{model: {origin: [1]}}", "null"])
def test_a_lock_that_is_none(lock: str, child: Path, tmp_path: Path) -> None:
    (tmp_path / "lock.yaml").write_text(f"{CHILD}lock: {lock}\n")
    with pytest.raises(RecipeError, match="lock"):
        compare(tmp_path / "lock.yaml", child, model="nowhere")


def test_names_are_text(hostile: Path, folded: Path) -> None:
    found = compare(folded, hostile)
    page = diff_html(found)
    assert "calibration.prompts" in page and "<script>alert" not in page and "&lt;script&gt;alert(3)" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;[red]" in page and "\x1b" not in page
    shown = [str(part) for part in diff_lines(found)]
    assert not any("\x1b" in line for line in shown)


def test_values_are_compared_by_key() -> None:
    from dmq_fx.inspection.diff import _values

    assert list(_values("x", {"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4})) == [
        Change("x.b.c", 2, 3),
        Change("x.d", None, 4),
    ]
