"""Locks, checks and parameters of recipes by `dmq`: what a compile is held to."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from recipe_command import RECIPE, dmq, done, failed

pytestmark = pytest.mark.usefixtures("home")


def test_locked(lab: Path, tmp_path: Path, small: list[str | Path]) -> None:
    Path("r.yaml").write_text("dmq: 2\nname: me/r\nextends: lab/w4@^1\nparams: {bits: {default: 4}}\n")
    said = failed("compile", "r.yaml", "-o", "out", "--locked", *small)
    assert "--locked needs a lock, and there is none" in said and not Path("out").exists()
    sets = [word for word in small[2:]]
    done("recipe", "lock", "r.yaml", *sets)
    parents = yaml.safe_load(Path("recipe.lock.yaml").read_text())["lock"]["parents"]
    assert [(one["name"], one.get("origin")) for one in parents[:2]] == [
        ("lab/w4", "remote lab"),
        ("weight-only/w4", None),
    ]
    done("compile", "r.yaml", "-o", "out", "--locked", *small)
    # the range now takes a newer version: without --locked that would be compiled
    Path("w4.yaml").write_text(RECIPE.replace("1.0.0", "1.1.0") + "schemes: {body: {weight: {bits: 3}}}\n")
    done("recipe", "push", "w4.yaml", "--remote", "lab")
    said = failed("compile", "r.yaml", "-o", "out2", "--locked", *small)
    assert "the recipe resolves to something else than its lock" in said
    assert "schemes.body.weight.bits: 3, locked 4" in said and "lab/w4@1.1.0 (" in said
    again = done("compile", "recipe.lock.yaml", "-o", "out3", *small[:2])
    digest = re.search(r"digest ([0-9a-f]{64})", again)
    assert digest and not Path("out2").exists()


def test_verify_an_artifact(lab: Path, small: list[str | Path], tmp_path: Path) -> None:
    done("compile", "lab/w4@^1", "-o", "out", *small)
    lock = yaml.safe_load(Path("out/recipe.lock.yaml").read_text())["lock"]
    assert [lock["recipe"]["name"], *(parent["name"] for parent in lock["parents"])] == [
        "lab/w4",
        "weight-only/w4",
        *(parent["name"] for parent in lock["parents"][1:]),
    ]
    text = done("recipe", "verify", "out")
    assert re.search(r"lab/w4@1\.0\.0  [0-9a-f]{16}…  same\n", text) and "differs" not in text
    assert json.loads(done("recipe", "verify", "out", "--json"))["ok"] is True
    done("recipe", "remote", "remove", "lab")
    assert "lab/w4@1.0.0" in done("recipe", "verify", "out") and "not here" in done("recipe", "verify", "out")
    # a library here that has another recipe under this name and version
    other = tmp_path / "other"
    other.mkdir()
    done("recipe", "remote", "add", "other", other)
    Path("w4.yaml").write_text(RECIPE + "budget: quick\n")
    done("recipe", "push", "w4.yaml", "--remote", "other")
    result = dmq("recipe", "verify", "out")
    assert result.exit_code == 2 and "differs: here it has the SHA-256" in result.stdout
    assert "recipes that it was made from differ from those here" in result.stderr
    changed = Path("out/recipe.lock.yaml")
    changed.write_text(changed.read_text().replace("bits: 4", "bits: 5", 1))
    assert "the file was changed after it was written" in failed("recipe", "verify", "out")


def test_check_writes_junit(tmp_path: Path, pipeline_folder: Path, small: list[str | Path]) -> None:
    Path("set").mkdir()
    Path("set/a.yaml").write_text(
        "dmq: 1\nname: a/a\nextends: weight-only/w8\n"
        "expect: {mean_weight_bits: {max: 8.0}, weight_megabytes: {max: 1.0e-6}}\n"
    )
    Path("set/b.yaml").write_text("dmq: 1\nname: a/b\nextends: ptq/none\n")
    result = dmq("recipe", "check", "set", "ptq/w8a8", "--model", pipeline_folder, "--junit", "report.xml", "--json")
    assert result.exit_code == 2 and "1 of 8 checks failed" in result.stderr
    cases = [(c["recipe"], c["what"], c["status"]) for c in json.loads(result.stdout)["cases"]]
    assert cases == [
        ("set/a.yaml", "valid", "passed"),
        ("set/a.yaml", "plan", "passed"),
        ("set/a.yaml", "expect mean_weight_bits", "skipped"),
        ("set/a.yaml", "expect weight_megabytes", "skipped"),
        ("set/b.yaml", "valid", "failed"),
        ("set/b.yaml", "plan", "skipped"),
        ("ptq/w8a8", "valid", "passed"),
        ("ptq/w8a8", "plan", "passed"),
    ]
    root = ElementTree.parse("report.xml").getroot()
    assert (root.get("tests"), root.get("errors"), root.get("skipped")) == ("8", "1", "3")
    assert [suite.get("name") for suite in root] == ["set/a.yaml", "set/b.yaml", "ptq/w8a8"]
    (error,) = root.iter("error")
    assert "the library has no recipe 'ptq/none'" in (error.get("message") or "")


def test_check_measures_gates(small: list[str | Path]) -> None:
    Path("a.yaml").write_text(
        "dmq: 1\nname: a/a\nextends: weight-only/w8\n"
        "expect: {mean_weight_bits: {max: 8.0}, weight_megabytes: {max: 1.0e-6}}\n"
    )
    result = dmq("recipe", "check", "a.yaml", *small, "--compile", "--junit", "report.xml")
    assert result.exit_code == 3, result.stderr
    assert "expected at most 1e-06" in result.stdout
    root = ElementTree.parse("report.xml").getroot()
    assert [(case.get("name"), len(list(case))) for case in root.iter("testcase")] == [
        ("valid", 0),
        ("plan", 0),
        ("compile", 0),
        ("expect mean_weight_bits", 0),
        ("expect weight_megabytes", 1),
    ]
    assert "--compile needs a model" in failed("recipe", "check", "a.yaml", "--compile")


def test_params_and_overlays_of_a_plan(pipeline_folder: Path) -> None:
    Path("r.yaml").write_text(
        "dmq: 2\nname: a/b\nparams: {w: {default: 4}}\n"
        'schemes: {s: {weight: {bits: "${w}"}}}\n'
        "rules: [{name: all, match: {op: [conv1d, conv2d, linear]}, scheme: s}]\n"
        "overlays:\n  - when: {model_class: UNet2DModel, max_parameters: 1e9}\n"
        "    rules: [{before: all, match: {role: first}, scheme: none}]\n"
    )

    def bits(*options: str) -> dict[str, int]:
        sites = json.loads(done("plan", "r.yaml", "--model", pipeline_folder, "--json", *options))["sites"]
        return {site["name"]: site["weight_bits"] for site in sites}

    found = bits()
    assert found["conv_in"] == 32 and set(found.values()) - {32, None} == {4}
    assert set(bits("-p", "w=2").values()) - {32, None} == {2}
    assert bits("--backend", "fake_quant")["conv_in"] == 32
    assert "the recipe has no parameter 'v'" in failed("plan", "r.yaml", "--model", pipeline_folder, "-p", "v=1")
    assert "this recipe has overlays" in failed("recipe", "lock", "r.yaml")
    assert done("validate", "r.yaml", "-p", "w=3").startswith("ok a/b")


def test_a_lock_that_cannot_be_written_leaves_nothing() -> None:
    Path("out").mkdir()
    assert "cannot write the lock" in failed("recipe", "lock", "weight-only/w4", "-o", "out")
    assert [path.name for path in Path().iterdir() if path.name.startswith(".out")] == []
