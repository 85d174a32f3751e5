"""`dmq` as tests of its recipe commands call it, and the recipe that they share."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner, Result

from dmq_fx.cli import app

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
