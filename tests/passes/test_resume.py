"""A compile that is killed in the middle of a learned pass and resumed gives the bytes of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dmq_fx
from dmq_fx.artifact.folder import open_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.checkpoint import Checkpoint, has_checkpoint

RECIPE = """\
dmq: 1
name: test/whole
extends: dmq/w4a8@^1
budget: full
passes:
  - split: {}
  - les: {iterations: 4, batch: 4}
  - adaround: {iterations: 12, batch: 4, samples: 8}
  - pts: {}
"""
CHECKPOINTS = {"in les": (3, "01-les"), "in adaround": (12, "02-adaround")}
"""Which write is the last one before the kill, and the pass that it belongs to."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "whole.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, pipeline_folder: Path, cache: CalibrationCache, fast: tuple[str, ...]) -> Path:
    output = recipe.parent / "whole"
    dmq_fx.compile(recipe, model=str(pipeline_folder), output=output, overrides=fast, cache=cache)
    return output


@pytest.mark.parametrize("when", CHECKPOINTS)
def test_killed_and_resumed_is_the_same(
    when: str,
    recipe: Path,
    whole: Path,
    pipeline_folder: Path,
    cache: CalibrationCache,
    fast: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {"model": str(pipeline_folder), "overrides": fast, "cache": cache}
    output = recipe.parent / when.replace(" ", "-")
    written: list[str] = []
    write = Checkpoint.write
    last, section = CHECKPOINTS[when]

    def write_and_die(self: Checkpoint, file: Path, *args: Any) -> None:
        write(self, file, *args)
        written.append(file.stem)
        if len(written) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)
    monkeypatch.setattr(Checkpoint, "write", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        dmq_fx.compile(recipe, output=output, **options)
    assert written[-1] == section and has_checkpoint(output) and not output.exists()
    monkeypatch.setattr(Checkpoint, "write", write)
    resumed = dmq_fx.compile(recipe, output=output, resume=True, **options)
    assert resumed.digest == open_artifact(whole).manifest.digest
    assert not has_checkpoint(output)
    for name in ("model.safetensors", "quantization.json", "report.json"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
