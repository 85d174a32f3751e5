"""The worked example of docs/sharing.md is run as it stands, on a bare repository of this machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmq_fx.cli import app

DOCUMENT = Path(__file__).parents[2] / "docs" / "sharing.md"
HOST = "file:///srv/git/lab.git"


@pytest.mark.slow
def test_the_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "lab")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "lab@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q", "--bare", "lab.git"], check=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "lab_key"], check=True)
    text = DOCUMENT.read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace(HOST, f"file://{tmp_path}/lab.git").splitlines()
    assert len(lines) == 19
    said = ""
    for line in lines:
        if line.startswith("dmq "):
            result = CliRunner().invoke(app, shlex.split(line)[1:], env={"COLUMNS": "200", "TERM": "dumb"})
            assert result.exit_code == 0, f"{line}\n{result.output}"
            said = result.stdout
        else:
            subprocess.run(["bash", "-c", line], check=True)
    shown = re.search(r"(?<=same here:\n\n)(    .*\n)+", text)
    assert shown
    pattern = re.escape(re.sub(r"^    ", "", shown[0], flags=re.MULTILINE))
    assert re.fullmatch(pattern.replace("DIGEST", "[0-9a-f]{64}").replace("SHA256", "[0-9a-f]{16}"), said), said
