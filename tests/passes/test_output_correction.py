"""Output correction takes the mean error of the prediction away, at every sampler step."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import dmq_fx
from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.lockstep import Lockstep, prediction
from dmq_fx.calibration.store import CalibrationCache, CalibrationSet
from dmq_fx.calibration.streaming import batches, nearest_slot
from dmq_fx.compiler import resolve_recipe
from dmq_fx.errors import RecipeError
from dmq_fx.models import load_model
from dmq_fx.program.output_shift import output_shift_rows

RECIPE = """\
dmq: 1
name: test/{name}
extends: ptq/w4a8@^1
schemes:
  body:
    activation: {{bits: 8, per_timestep: {per_timestep}}}
passes: {passes}
"""
CORRECTED = "[output_correction: {batches: 2}]"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path, fast: tuple[str, ...]) -> Any:
    """Compiles W4A8 with some passes; gives the artifact's folder and the calibration inputs."""
    folder = tmp_path_factory.mktemp("corrected")
    cache = CalibrationCache(folder / "cache")

    def build(name: str, passes: str, per_timestep: str = "true", **options: Any) -> tuple[Path, CalibrationSet]:
        recipe = folder / f"{name}.yaml"
        recipe.write_text(RECIPE.format(name=name, passes=passes, per_timestep=per_timestep))
        options.setdefault("model", str(pipeline_folder))
        dmq_fx.compile(recipe, output=folder / name, overrides=fast, cache=cache, **options)
        return folder / name, next(found for key in cache.root.iterdir() if (found := cache.get(key.name)))

    return build


def mean_errors(artifact: Path, inputs: CalibrationSet, model: str) -> Tensor:
    """Mean error of the prediction by step and channel, [steps, channels], over the calibration inputs."""
    exact, quantized = load_model(model).denoiser, dmq_fx.load(artifact)
    sums: dict[int, Tensor] = {}
    with torch.no_grad():
        for _batch, step, tensors in inputs:
            arguments = (tensors["sample"], tensors["timestep"])
            error = exact(*arguments).sample - quantized(*arguments).sample
            sums[step] = sums.get(step, torch.zeros(1)) + error.mean((0, 2, 3)) / len(inputs)
    return torch.stack([sums[step] for step in sorted(sums)])


@pytest.mark.parametrize("per_timestep", ["true", "false"])
def test_the_mean_of_every_step_vanishes(compiled: Any, pipeline_folder: Path, per_timestep: str) -> None:
    """With ranges by timestep or without: the table brings the slot with it."""
    model = str(pipeline_folder / "unet")
    plain, inputs = compiled(f"plain-{per_timestep}", "[]", per_timestep)
    corrected, _ = compiled(f"corrected-{per_timestep}", CORRECTED, per_timestep)
    before, after = mean_errors(plain, inputs, model), mean_errors(corrected, inputs, model)
    assert len(before) == 4 and float(before.abs().max()) > 1e-3
    assert float(after.abs().max()) < 1e-4 * float(before.abs().max()) + 1e-6
    report = open_artifact(corrected).report["passes"][-1]
    torch.testing.assert_close(torch.tensor(report["largest_shift"]), before.abs().amax(1), atol=2e-6, rtol=1e-3)


def test_one_mean_over_all_steps(compiled: Any, pipeline_folder: Path) -> None:
    corrected, inputs = compiled("over-all", "[output_correction: {per_timestep: false}]")
    after = mean_errors(corrected, inputs, str(pipeline_folder / "unet"))
    assert float(after.mean(0).abs().max()) < 1e-6 < float(after.abs().max())


def test_it_is_exact_after_learned_scaling_and_shifts(compiled: Any, pipeline_folder: Path) -> None:
    """The graph with folds, splits and shifts gives what the pass measured."""
    passes = "[split: {}, smoothquant: {}, pts: {sites: all}, output_correction: {}]"
    corrected, inputs = compiled("scaled", passes)
    after = mean_errors(corrected, inputs, str(pipeline_folder / "unet"))
    assert float(after.abs().max()) < 1e-3  # a rounding of the last bit may flip an integer further down


@pytest.mark.parametrize(("name", "axis"), [("flux", 2), ("cogvideox", 2), ("wan", 1), ("dit", 1)])
def test_channels_are_where_the_model_has_them(
    tmp_path: Path, architectures: ModuleType, fast: tuple[str, ...], name: str, axis: int
) -> None:
    """Tokens last, video behind its frames or before them; the mean of every channel and step vanishes."""
    model, inputs = architectures.tiny_model(name), architectures.tiny_inputs(name)
    cache = CalibrationCache(tmp_path / "cache")
    options: dict[str, Any] = {"model": model, "inputs": inputs, "overrides": fast, "cache": cache}
    recipe = tmp_path / "corrected.yaml"
    recipe.write_text(RECIPE.format(name="corrected", passes=CORRECTED, per_timestep="true"))
    dmq_fx.compile(recipe, output=tmp_path / "corrected", **options)
    program, _ = load_program(open_artifact(tmp_path / "corrected"), model)
    assert program.output_shift is not None
    calibrated = next(found for key in cache.root.iterdir() if (found := cache.get(key.name)))
    run, sums = Lockstep(program), torch.zeros(4, model(**inputs).sample.shape[axis])
    for _done, arguments in batches(program.traced, calibrated, torch.device("cpu")):
        output, slot = run.forward(arguments), nearest_slot(program, arguments)
        error = prediction(output.exact) - prediction(output.quantized) - output_shift_rows(program, slot)
        assert slot is not None
        sums[slot[0]] += error.movedim(axis, 1).flatten(2).mean((0, 2))
    assert program.output_shift.shape == sums.shape and program.output_shift.abs().max() > 1e-4
    assert sums.abs().max() < 1e-5 + 1e-3 * program.output_shift.abs().max()


@pytest.mark.parametrize("passes", ["[output_correction: {}, bias_correction: {}]", "[output_correction: {}, pts: {}]"])
def test_nothing_changes_the_model_behind_it(tmp_path: Path, passes: str) -> None:
    recipe = tmp_path / "late.yaml"
    recipe.write_text(RECIPE.format(name="late", passes=passes, per_timestep="true"))
    with pytest.raises(RecipeError, match="must come before 'output_correction'"):
        resolve_recipe(recipe)
