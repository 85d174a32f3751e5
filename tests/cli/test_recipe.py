"""`dmq recipe` as a user meets it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from dmq_fx.cli import app

COMMANDS = (
    "list",
    "search",
    "show",
    "versions",
    "new",
    "fmt",
    "check",
    "pull",
    "push",
    "lock",
    "verify",
    "sign",
    "migrate",
)
RECIPE = "dmq: 2\nname: lab/w4\nversion: 1.0.0\nsummary: of the lab\nextends: weight-only/w4@^1\n"


def dmq(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200", "TERM": "dumb"})


def done(*arguments: str | Path) -> str:
    result = dmq(*arguments)
    assert result.exit_code == 0, result.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)


def failed(*arguments: str | Path, code: int = 2) -> str:
    result = dmq(*arguments)
    assert result.exit_code == code, result.stdout + result.stderr
    return result.stderr


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folders that are empty, and a current folder."""
    for kind in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / "home" / kind.lower()))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """The remote `lab`, a folder with one recipe, w4."""
    (tmp_path / "lab").mkdir()
    done("recipe", "remote", "add", "lab", tmp_path / "lab")
    Path("w4.yaml").write_text(RECIPE)
    done("recipe", "push", "w4.yaml", "--remote", "lab")
    return tmp_path / "lab"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key of OpenSSH, and the user's file of trusted keys with it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    kind, text = (tmp_path / "key.pub").read_text().split()[:2]
    (tmp_path / "trusted").write_text(f"lab {kind} {text}\n")
    return tmp_path / "key"


@pytest.fixture
def small(pipeline_folder: Path, fast: tuple[str, ...]) -> list[str | Path]:
    return ["--model", pipeline_folder, *(word for override in fast for word in ("--set", override))]


@pytest.mark.parametrize("command", [*COMMANDS, "remote add", "remote list", "remote remove"])
def test_help_has_an_example(command: str) -> None:
    text = done("recipe", *command.split(), "--help")
    assert f"dmq recipe {command}" in text.partition("Example")[2]


def test_lists(lab: Path) -> None:
    lines = done("recipe", "list").splitlines()
    assert any(line.split()[:3] == ["lab/w4", "1.0.0", "lab"] for line in lines)
    assert any(line.split()[:3] == ["ptq/w8a8", "1.0.0", "library"] for line in lines)
    found = json.loads(done("recipe", "search", "LAB", "w4", "--json"))["recipes"]
    assert [(row["name"], row["place"], row["versions"]) for row in found] == [("lab/w4", "lab", ["1.0.0"])]
    rows = [line.split() for line in done("recipe", "list", "--remote", "lab").splitlines()]
    assert [row[0] for row in rows] == ["recipe", "lab/w4"]
    assert done("recipe", "versions", "lab/w4@^1") == "lab/w4@1.0.0  lab\n"
    assert "there is no recipe 'lab/w5'" in failed("recipe", "versions", "lab/w5")
    assert "no recipe has all of these words" in dmq("recipe", "search", "nothing-like-it").stderr


def test_a_remote_that_is_gone_is_a_note(lab: Path) -> None:
    done("recipe", "remote", "add", "gone", lab.parent / "nowhere")
    result = dmq("recipe", "list", "--json")
    assert result.exit_code == 0
    assert "note: remote gone: there is no index.json at file://" in result.stderr
    assert any(row["place"] == "lab" for row in json.loads(result.stdout)["recipes"])


def test_remotes(tmp_path: Path) -> None:
    assert done("recipe", "remote", "list") == ""
    done("recipe", "remote", "add", "web", "https://example.org/recipes/", "--require-signed")
    assert done("recipe", "remote", "list") == "web  https://example.org/recipes  signed only\n"
    assert "there is a remote called 'web' already" in failed("recipe", "remote", "add", "web", "https://example.org")
    assert "a remote cannot be called '../x'" in failed("recipe", "remote", "add", "../x", "https://example.org")
    said = failed("recipe", "remote", "add", "x", "https://me:hunter2@example.org")
    assert "an address holds no user name and no password" in said and "hunter2" not in said
    assert "did you mean 'web'?" in failed("recipe", "remote", "remove", "wb")
    done("recipe", "remote", "remove", "web")
    assert json.loads(done("recipe", "remote", "list", "--json")) == {"remotes": []}
    assert "hunter2" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))


def test_show(lab: Path) -> None:
    text = done("recipe", "show", "lab/w4@^1", "--set", "schemes.body.weight.bits=3")
    assert "# file lab/w4@1.0.0 from remote lab (SHA-256 " in text and "# parent weight-only/w4@1.0.0 (SHA-256 " in text
    assert yaml.safe_load(text)["schemes"]["body"]["weight"]["bits"] == 3
    found = json.loads(done("recipe", "show", "lab/w4", "--json"))
    assert found["recipe"]["name"] == "lab/w4" and found["files"][0]["origin"] == "remote lab"
    assert len(found["digest"]) == 64


def test_new_is_valid_formatted_and_names_a_schema(home: Path) -> None:
    assert done("recipe", "new", "lab/mine", "--from", "ptq/w4a8@^1") == "wrote mine.yaml and recipe-v2.schema.json\n"
    text = Path("mine.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=./recipe-v2.schema.json\ndmq: 2\n")
    schema = json.loads(Path("recipe-v2.schema.json").read_text())
    assert schema["properties"]["schemes"]["additionalProperties"]["description"]  # what an editor shows
    assert done("validate", "mine.yaml").startswith("ok lab/mine 0.1.0 (")
    assert done("recipe", "fmt", "--check", "mine.yaml") == ""
    assert "there is a file already" in failed("recipe", "new", "lab/mine", "--from", "ptq/w4a8")
    assert "'mine' is not the name of a recipe" in failed("recipe", "new", "mine", "--from", "ptq/w4a8", "-o", "x.yaml")
    assert "the library has no recipe 'ptq/none'" in failed("recipe", "new", "lab/x", "--from", "ptq/none")


def test_fmt_and_migrate() -> None:
    Path("r.yaml").write_text("dmq:   1\nname: a/b   # us\nrules: [{scheme:  none}]\nsummary: ${x}\n")
    assert "not formatted: r.yaml" in failed("recipe", "fmt", "--check", "r.yaml")
    assert done("recipe", "fmt", "r.yaml") == "formatted r.yaml\n"
    assert done("recipe", "fmt", "r.yaml") == ""
    assert done("recipe", "migrate", "r.yaml").startswith("dmq: 2\nname: a/b   # us\n")
    assert Path("r.yaml").read_text().startswith("dmq: 1\n")
    assert done("recipe", "migrate", "r.yaml", "--write") == "r.yaml: from version 1 to 2\n"
    assert done("recipe", "migrate", "r.yaml", "--write") == "r.yaml is in version 2 already\n"
    assert done("validate", "r.yaml").startswith("ok a/b 0.0.0 (")


def test_pull_and_offline(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = done("recipe", "pull", "lab/w4@^1", "--remote", "lab").splitlines()
    assert lines[0].startswith("lab/w4@1.0.0  ") and lines[0].endswith("  remote lab")
    assert lines[1].startswith("  weight-only/w4@1.0.0  ")

    def guard(*_: object, **__: object) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", guard)
    for words in (["list"], ["show", "lab/w4"], ["versions", "lab/w4"], ["search", "lab"]):
        done("recipe", *words, "--offline")
    said = failed("plan", "lab/w4", "--model", "org/model", "--offline")
    assert "offline, and this model is on the hub" in said


def test_push_refuses_other_content(lab: Path) -> None:
    assert done("recipe", "push", "w4.yaml", "--remote", "lab").startswith("already there: lab/w4@1.0.0  ")
    Path("w4.yaml").write_text(RECIPE + "schemes: {body: {weight: {bits: 3}}}\n")
    assert "lab/w4@1.0.0 is there already, with other content" in failed("recipe", "push", "w4.yaml", "--remote", "lab")


def test_signed_recipes(lab: Path, key: Path) -> None:
    trusted = key.with_name("trusted")
    assert "not signed" in failed("recipe", "verify", "w4.yaml", "--trusted-keys", trusted)
    assert done("recipe", "sign", "w4.yaml", "--key", key) == f"wrote {Path('w4.yaml.sig')}\n"
    assert "signed by a trusted key" in done("recipe", "verify", "w4.yaml", "--trusted-keys", trusted)
    assert "not signed" in failed("recipe", "pull", "lab/w4", "--trusted-keys", trusted)
    assert done("recipe", "push", "w4.yaml", "--remote", "lab").rstrip().endswith("signed")
    done("recipe", "pull", "lab/w4", "--trusted-keys", trusted)
    said = failed("recipe", "show", "lab/w4", "--require-signed")
    assert "there is no file of trusted keys at " in said


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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = done("completion", shell)
    assert "_DMQ_COMPLETE" in script and f"complete_{shell}" in script
    assert dmq("completion", "tcsh").exit_code == 2


def test_the_completion_of_a_shell_works() -> None:
    environment = {"COMP_WORDS": "dmq recipe ver", "COMP_CWORD": "2", "_DMQ_COMPLETE": "complete_bash"}
    import os

    code = "from dmq_fx.cli import app; app(prog_name='dmq')"
    done_ = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert set(done_.stdout.split()) == {"verify", "versions"}


def test_secrets_of_addresses_are_in_no_message(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of remotes that was written by hand."""
    path = home / "config" / "dmq" / "remotes.json"
    path.parent.mkdir(parents=True)
    remotes = [{"name": "x", "address": "https://me:hunter2@example.org/r"}]
    path.write_text(json.dumps({"format": 1, "remotes": remotes}))
    said = failed("recipe", "list")
    assert "an address holds no user name" in said and "hunter2" not in said


def test_new_names_a_file_from_its_own_folder() -> None:
    Path("par").mkdir()
    Path("sub").mkdir()
    for name in ("base.yaml", "a #b.yaml", "nosuffix"):
        Path("par", name).write_text(RECIPE)
        done("recipe", "new", "lab/kid", "--from", f"par/{name}", "-o", "sub/kid.yaml")
        assert "lab/w4@1.0.0" in done("recipe", "show", "sub/kid.yaml")
        Path("sub/kid.yaml").unlink()


def test_fmt_keeps_a_link_and_the_mode_of_its_file() -> None:
    Path("r.yaml").write_text(RECIPE.replace("dmq: 2", "dmq:    2"))
    Path("r.yaml").chmod(0o664)
    Path("link.yaml").symlink_to("r.yaml")
    assert done("recipe", "fmt", "link.yaml") == "formatted link.yaml\n"
    assert Path("link.yaml").is_symlink() and Path("r.yaml").stat().st_mode & 0o777 == 0o664
    assert Path("r.yaml").read_text() == RECIPE


def test_a_conflict_of_parents_says_where() -> None:
    Path("r.yaml").write_text(RECIPE.replace("weight-only/w4@^1", "[weight-only/w4, weight-only/w4]"))
    assert "r.yaml:5:10: there is no order of parents" in failed("recipe", "show", "r.yaml")


def test_a_lock_that_cannot_be_written_leaves_nothing() -> None:
    Path("out").mkdir()
    assert "cannot write the lock" in failed("recipe", "lock", "weight-only/w4", "-o", "out")
    assert [path.name for path in Path().iterdir() if path.name.startswith(".out")] == []


def test_pull_from_one_remote_is_not_answered_by_another() -> None:
    for name, summary in (("one", "of the lab"), ("two", "other")):
        done("recipe", "remote", "add", "x", name)
        Path("r.yaml").write_text(RECIPE.replace("of the lab", summary))
        done("recipe", "push", "r.yaml", "--remote", "x")
        done("recipe", "remote", "remove", "x")
    done("recipe", "remote", "add", "one", "one")
    done("recipe", "remote", "add", "two", "two")
    assert "another one in a place that is asked before" in failed("recipe", "pull", "lab/w4", "--remote", "two")
    assert "lab/w4@1.0.0" in done("recipe", "pull", "lab/w4", "--remote", "one")
