"""`dmq recipe` as a user meets it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_command import RECIPE, dmq, done, failed

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
pytestmark = pytest.mark.usefixtures("home")


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
