"""Completion of commands by shells."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from recipe_command import dmq, done


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = done("completion", shell)
    assert "_DMQ_COMPLETE" in script and f"complete_{shell}" in script
    assert dmq("completion", "tcsh").exit_code == 2


def test_the_completion_of_a_shell_works() -> None:
    environment = {"COMP_WORDS": "dmq recipe ver", "COMP_CWORD": "2", "_DMQ_COMPLETE": "complete_bash"}
    code = "from dmq_fx.cli import app; app(prog_name='dmq')"
    done_ = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert set(done_.stdout.split()) == {"verify", "versions"}
