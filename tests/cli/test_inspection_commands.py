"""Inspection as a user meets it: `inspect`, `graph`, `diff`, `explain`, `plan --explain`, `compile --no-report`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dmq_fx.cli import app


def dmq(*arguments: object, columns: int = 80) -> Result:
    environment = {"COLUMNS": str(columns), "TERM": "dumb"}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_worst(artifact: Path) -> None:
    result = dmq("inspect", artifact, "--worst", 3, "--role", "block_in")
    rows = [line.split() for line in result.stdout.splitlines() if re.match(r"\d  ", line)]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    errors = [float(row[-3]) for row in rows]
    assert errors == sorted(errors)
    every = json.loads(dmq("inspect", artifact, "--sort", "sqnr", "--role", "block_in", "--json").stdout)
    assert [site["name"] for site in every["sites"]][:3] == [row[1] for row in rows]


def test_depth_and_op(artifact: Path) -> None:
    text = dmq("inspect", artifact, "--depth", 1).stdout
    assert re.search(r"down_blocks  \d+ sites · .* · worst [0-9.]+ dB", text)
    text = dmq("inspect", artifact, "--op", "attention").stdout
    assert "full precision" in text and "conv2d" not in text


def test_json_has_everything(artifact: Path) -> None:
    found = json.loads(dmq("inspect", artifact, "--site", "conv_in", "--json").stdout)
    assert {"sizes", "roles", "errors", "missing", "timesteps", "passes"} <= set(found)
    assert found["sizes"]["full_precision"] > found["sizes"]["honest"] > found["sizes"]["paper"]
    (site,) = found["sites"]
    assert site["scheme_text"].startswith("W8 per-channel sym") and site["bops"] == site["macs"] * 64
    assert len(site["statistics"]["input"]["before"]["channel_maxima"]) == 3
    assert set(found["errors"]["local_sqnr_db"]) == {"conv_in"} and len(found["errors"]["trajectory_mse"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--role", "frist"), "did you mean 'first'?"),
        (("--sort", "size2"), "cannot sort by 'size2'"),
        (("--site", "re:["), "is no regular expression"),
        (("--html", "/nowhere/page.html"), "cannot write the page"),
        (("--html", ""), "cannot write the page"),
        (("--site", "conv_in", "--role", "last"), "no site fits --site conv_in and --role last at once"),
        (("--op", "attention", "--worst", "3"), "none of these sites has a number to sort by sqnr"),
        (("--worst", "3", "--depth", "1"), "--depth closes modules of the tree"),
    ],
)
def test_bad_questions(artifact: Path, arguments: tuple[str, ...], message: str) -> None:
    result = dmq("inspect", artifact, *arguments)
    assert (result.exit_code, result.stdout) == (2, "") and message in plain(result.stderr)


def test_verify_reads_the_weights(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in artifact.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert dmq("inspect", copy).exit_code == 0
    result = dmq("inspect", copy, "--verify")
    assert result.exit_code == 2 and "model.safetensors: the file was changed" in plain(result.stderr)


def test_html(artifact: Path, tmp_path: Path) -> None:
    result = dmq("inspect", artifact, "--html", tmp_path / "report.html")
    assert result.exit_code == 0 and result.stdout.strip() == f"wrote {tmp_path / 'report.html'}"
    assert "<!doctype html>" in (tmp_path / "report.html").read_text()


def test_graph_files(artifact: Path, tmp_path: Path) -> None:
    result = dmq("graph", artifact, "-o", tmp_path / "graph.json", "--no-time", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["overlays"] == ["role", "size (bytes)", "activation bits", "weight bits", "SQNR (dB)"]
    assert len(found["files"]) == 6 and all(Path(file).is_file() for file in found["files"])
    assert len(json.loads((tmp_path / "graph.json").read_text())["graphs"][0]["nodes"]) == found["nodes"]


def test_diff(artifact: Path, tmp_path: Path, pipeline_folder: Path) -> None:
    same = dmq("diff", artifact, artifact)
    assert same.exit_code == 0 and "nothing differs" in same.stdout
    result = dmq("diff", "ptq/w8a8", "ptq/w4a8", "--model", pipeline_folder, "--html", tmp_path / "diff.html")
    assert result.exit_code == 1 and "schemes.body.weight.bits" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 200 and "\x1b" not in result.stdout
    assert "What differs" in (tmp_path / "diff.html").read_text()
    found = json.loads(dmq("diff", "ptq/w8a8", "ptq/w4a8", "--model", pipeline_folder, "--json").stdout)
    assert found["same"] is False and found["sites"][0]["changed"]
    missing = dmq("diff", artifact, "ptq/w8a9")
    assert missing.exit_code == 2 and "did you mean" in missing.stderr


def test_explain(artifact: Path, pipeline_folder: Path) -> None:
    site = "mid_block.resnets.0.conv1"
    result = dmq("explain", site, "--artifact", artifact)
    assert result.exit_code == 0, result.stderr
    assert "decides" in result.stdout and "ptq/base@1.0.0.yaml:" in result.stdout and "> conv2d" in result.stdout
    found = json.loads(dmq("explain", site, "--artifact", artifact, "--no-graph", "--json").stdout)
    assert found["neighbours"] == [] and found["rules"][-1]["holds"]
    planned = dmq("plan", "ptq/w8a8", "--model", pipeline_folder, "--explain", site)
    assert planned.exit_code == 0 and "base@1.0.0.yaml:" in planned.stdout
    both = dmq("plan", "ptq/w8a8", "--model", pipeline_folder, "--explain", site, "--backend", "x86_int8")
    assert both.exit_code == 2 and "--explain says nothing of kernels" in both.stderr
    unknown = dmq("plan", "ptq/w8a8", "--model", pipeline_folder, "--explain", "mid_block.resnets.0.conv3")
    assert unknown.exit_code == 2 and "did you mean" in unknown.stderr and site in unknown.stderr


def test_compile_without_a_report(pipeline_folder: Path, tmp_path: Path, fast: tuple[str, ...]) -> None:
    options = [argument for override in fast for argument in ("--set", override)]
    result = dmq(
        "compile", "weight-only/w8", "--model", pipeline_folder, "-o", tmp_path / "out", "--no-report", *options
    )
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "out" / "inspection.safetensors").exists()
    text = dmq("inspect", tmp_path / "out").stdout
    assert "note: no distributions and images: compiled with --no-report" in text
    assert "note: no errors by timestep: the recipe needed no calibration" in text
