"""`dmq validate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dmq_fx.cli.validate import validate

app = typer.Typer()
app.command()(validate)
BAD = "dmq: 1\nname: a/b\nrules: [{match: {role: frist}, scheme: w4}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "good.yaml").write_text("dmq: 1\nname: a/b\nversion: 1.2.3\nrules: [{scheme: none}]\n")
    return tmp_path


def test_valid_recipes(folder: Path) -> None:
    result = CliRunner().invoke(app, ["good.yaml", "ptq/w8a8@^1"])
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.startswith("ok a/b 1.2.3 (")
    assert second.startswith("ok ptq/w8a8 1.0.0 (")
    assert len(first.partition("(")[2]) == 65


def test_errors_are_told_and_the_others_still_checked(folder: Path) -> None:
    result = CliRunner().invoke(app, ["bad.yaml", "good.yaml"])
    assert result.exit_code == 2
    assert result.stdout.startswith("ok a/b 1.2.3 (")
    assert result.stderr == (
        "bad.yaml: 2 errors\n"
        "  bad.yaml:3:24: unknown role 'frist'\n"
        "    hint: did you mean 'first'?\n"
        "  bad.yaml:3:40: unknown scheme 'w4'\n"
        "    hint: known: none\n"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("passes: [les, smoothquant]", "x.yaml:4:15: passes 'smoothquant' and 'les' do the same"),
        ("backend: cuda_int8", "x.yaml:4:10: unknown backend 'cuda_int8'"),
        ("backend: x86_int9", "did you mean 'x86_int8'?"),
    ],
)
def test_what_every_plan_would_refuse(folder: Path, line: str, said: str) -> None:
    (folder / "x.yaml").write_text(f"dmq: 1\nname: a/x\nextends: ptq/w4a8\n{line}\n")
    result = CliRunner().invoke(app, ["x.yaml"])
    assert result.exit_code == 2 and said in result.stderr


def test_json(folder: Path) -> None:
    result = CliRunner().invoke(app, ["--json", "good.yaml", "bad.yaml", "none.yaml"])
    assert result.exit_code == 2
    good, bad, missing = json.loads(result.stdout)["recipes"]
    assert good.pop("digest")
    assert good == {"reference": "good.yaml", "ok": True, "name": "a/b", "version": "1.2.3", "errors": []}
    assert bad == {
        "reference": "bad.yaml",
        "ok": False,
        "name": None,
        "version": None,
        "digest": None,
        "errors": [
            {"where": "bad.yaml:3:24", "message": "unknown role 'frist'", "hint": "did you mean 'first'?"},
            {"where": "bad.yaml:3:40", "message": "unknown scheme 'w4'", "hint": "known: none"},
        ],
    }
    assert missing["errors"][0]["where"] == "none.yaml"
    assert missing["errors"][0]["message"] == "no such file"
