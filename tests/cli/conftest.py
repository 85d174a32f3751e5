"""A user's empty folders, a remote of recipes, and a key to sign with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from recipe_command import RECIPE, done


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folders that are empty, and a current folder."""
    for kind in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / "home" / kind.lower()))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.fixture
def lab(home: Path, tmp_path: Path) -> Path:
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
