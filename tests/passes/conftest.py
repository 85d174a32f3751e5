"""What tests of learned passes share: a compile that dies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dmq_fx
from dmq_fx.checkpoint import Checkpoint, has_checkpoint

Killed = Callable[..., list[str]]


@pytest.fixture
def compile_killed() -> Killed:
    """Compile to `output`, and die right after the `last`-th write of a checkpoint; the names of the parts written."""

    def run(recipe: Path, output: Path, last: int, options: dict[str, Any]) -> list[str]:
        written: list[str] = []
        write = Checkpoint.write

        def write_and_die(self: Checkpoint, file: Path, *args: Any) -> None:
            write(self, file, *args)
            written.append(file.stem)
            if len(written) == last:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoint, "is_due", lambda self: True)
            patch.setattr(Checkpoint, "write", write_and_die)
            with pytest.raises(KeyboardInterrupt):
                dmq_fx.compile(recipe, output=output, **options)
        assert has_checkpoint(output) and not output.exists()
        return written

    return run
