"""Output correction takes the mean error of the prediction away, at every sampler step."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import dmq_fx
from dmq_fx.artifact.folder import load_program, open_artifact
from dmq_fx.calibration.store import CalibrationCache, CalibrationSet
from dmq_fx.models import load_model

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


def test_tokens_have_their_channels_last(tmp_path: Path, architectures: ModuleType, fast: tuple[str, ...]) -> None:
    model, inputs = architectures.tiny_model("flux"), architectures.tiny_inputs("flux")
    cache = CalibrationCache(tmp_path / "cache")
    options: dict[str, Any] = {"model": model, "inputs": inputs, "overrides": fast, "cache": cache}
    recipe = tmp_path / "corrected.yaml"
    recipe.write_text(RECIPE.format(name="corrected", passes=CORRECTED, per_timestep="true"))
    dmq_fx.compile(recipe, output=tmp_path / "corrected", **options)
    program, _ = load_program(open_artifact(tmp_path / "corrected"), model)
    assert program.output_shift is not None
    channels = model(**inputs).sample.shape[-1]
    assert program.output_shift.shape == (4, channels) and program.output_shift.abs().amax(0).min() > 0
