"""A compile that is killed in the middle of a learned pass and resumed gives the bytes of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dmq_fx
from dmq_fx import compiler
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.checkpoint import has_checkpoint
from dmq_fx.program import Program

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
def compiled(
    recipe: Path, pipeline_folder: Path, cache: CalibrationCache, fast: tuple[str, ...]
) -> tuple[Path, Program]:
    """The artifact of an uninterrupted compile, and the program that it was written from."""
    output = recipe.parent / "whole"
    programs: list[Program] = []
    save = compiler.save_program

    def spy(program: Program, *args: Any, **kwargs: Any) -> Any:
        programs.append(program)
        return save(program, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "save_program", spy)
        dmq_fx.compile(recipe, model=str(pipeline_folder), output=output, overrides=fast, cache=cache)
    return output, programs[0]


@pytest.fixture(scope="module")
def whole(compiled: tuple[Path, Program]) -> Path:
    return compiled[0]


def test_what_is_loaded_is_what_was_compiled(compiled: tuple[Path, Program]) -> None:
    """gamma, folded norms, shifts by timestep and split sites, through the files: the same bits."""
    output, program = compiled
    assert program.splits and program.folded and program.shifts
    assert set(program.folded) < set(program.input_scales)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([900, 400, 3])
    with torch.no_grad():
        expected = program.graph_module(x, t)[0]
        assert torch.equal(dmq_fx.load(output)(x, t).sample, expected)


@pytest.mark.parametrize("when", CHECKPOINTS)
def test_killed_and_resumed_is_the_same(
    when: str,
    recipe: Path,
    whole: Path,
    pipeline_folder: Path,
    cache: CalibrationCache,
    fast: tuple[str, ...],
    compile_killed: Any,
) -> None:
    options: dict[str, Any] = {"model": str(pipeline_folder), "overrides": fast, "cache": cache}
    output = recipe.parent / when.replace(" ", "-")
    last, section = CHECKPOINTS[when]
    assert compile_killed(recipe, output, last, options)[-1] == section
    resumed = dmq_fx.compile(recipe, output=output, resume=True, **options)
    assert resumed.digest == open_artifact(whole).manifest.digest
    assert not has_checkpoint(output)
    for name in ("model.safetensors", "quantization.json", "report.json"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
