"""Votes and elections of power-of-two scaling (shared specification 8.8 and 8.14 c)."""

from __future__ import annotations

from pathlib import Path

import torch

import dmq_fx
from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.numerics import IntegerGrid
from dmq_fx.passes.pts import elect, least_error_shifts

GRID = IntegerGrid(8, False)


def test_each_channel_takes_the_scale_of_its_range() -> None:
    scale, zero_point = torch.full((1, 1, 1), 2 / 255), torch.full((1, 1, 1), 128.0)
    wave = torch.linspace(-1, 1, 301)
    x = torch.stack([wave * 0.99, wave / 2.1, wave / 4.2, wave / 8.4, wave / 100])[None]
    assert least_error_shifts(x, scale, zero_point, GRID, 3).tolist() == [[0, 1, 2, 3, 3]]


def test_seventeen_of_twenty_votes_are_enough_and_sixteen_are_not() -> None:
    votes = torch.tensor([[[3, 0, 0, 17], [4, 0, 0, 16], [0, 20, 0, 0]]])
    assert elect(votes, 0.85).tolist() == [[3, 0, 1]]
    assert elect(votes, 0.5).tolist() == [[3, 3, 1]]


RECIPE = """\
dmq: 1
name: test/shifted
extends: dmq/base@^1
passes: [split: {{}}, pts: {{per_timestep: {per_timestep}}}]
"""


def compiled(folder: Path, pipeline: Path, cache: CalibrationCache, fast: tuple[str, ...], per_timestep: bool) -> Path:
    recipe = folder / f"{per_timestep}.yaml"
    recipe.write_text(RECIPE.format(per_timestep=str(per_timestep).lower()))
    output = folder / str(per_timestep)
    dmq_fx.compile(recipe, model=str(pipeline), output=output, overrides=fast, cache=cache)
    return output


def test_shared_shifts_go_into_the_weights(
    tmp_path: Path, pipeline_folder: Path, cache: CalibrationCache, fast: tuple[str, ...]
) -> None:
    for per_timestep in (True, False):
        output = compiled(tmp_path, pipeline_folder, cache, fast, per_timestep)
        opened = open_artifact(output)
        program, _ = load_program(opened)
        shifted = {program.activations[index].sites[0] for index in program.shifts}
        assert shifted == {
            f"up_blocks.{u}.resnets.{r}.conv_shortcut.{h}"
            for u in (0, 1)
            for r in (0, 1)
            for h in ("decoder", "encoder")
        }
        report = opened.report["passes"][1]["shifts"]
        assert all(row["in_weights"] is not per_timestep for row in report.values())
        rows = {len(shifts) for shifts in program.shifts.values()}
        assert rows == ({4} if per_timestep else {1})
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        loaded = dmq_fx.load(output)
        with torch.no_grad():
            assert bool(torch.isfinite(loaded(x, torch.tensor([900, 10])).sample).all())
