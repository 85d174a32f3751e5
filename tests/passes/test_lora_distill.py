"""`lora_distill` as a pass: better than nearest rounding, the same every time, also when it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dmq_fx
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.errors import CalibrationError, RecipeError
from dmq_fx.models import load_model
from dmq_fx.passes import lora_distill

RECIPE = """\
dmq: 1
name: test/distilled
extends: efficientdm/w3a6
budget: full
passes: [lora_distill: {iterations: 24, batch: 2, rank: 4, learning_rate: 0.1, activation_learning_rate: 5.0e-3%s}]
"""


@pytest.fixture(scope="module")
def options(pipeline_folder: Path, fast: tuple[str, ...], cache: CalibrationCache) -> dict[str, Any]:
    return {"model": str(pipeline_folder), "overrides": fast, "cache": cache}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distill") / "distilled.yaml"
    path.write_text(RECIPE % ", distance: relation")
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, options: dict[str, Any]) -> Path:
    dmq_fx.compile(recipe, output=recipe.parent / "whole", **options)
    return recipe.parent / "whole"


def model_error(artifact: Path, pipeline_folder: Path) -> float:
    """Mean squared error of a denoiser's output for noise that it was not calibrated on."""
    sample = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    timestep = torch.tensor([751, 501, 251, 1] * 4)
    exact = load_model(str(pipeline_folder / "unet")).denoiser
    with torch.no_grad():
        wanted, found = (model(sample, timestep).sample for model in (exact, dmq_fx.load(artifact)))
    return float((wanted - found).square().mean())


@pytest.fixture(scope="module")
def naive(recipe: Path, options: dict[str, Any]) -> Path:
    """The same without the pass."""
    given = {**options, "overrides": (*options["overrides"], "passes=[]")}
    dmq_fx.compile(recipe, output=recipe.parent / "naive", **given)
    return recipe.parent / "naive"


def test_the_model_is_better(whole: Path, naive: Path, pipeline_folder: Path) -> None:
    assert model_error(whole, pipeline_folder) < 0.9 * model_error(naive, pipeline_folder)
    (found,) = (row for row in open_artifact(whole).report["passes"] if row["pass"] == "lora_distill")
    assert found["iterations"] == 24 and found["trajectories"] == 6 and len(found["task_loss"]) == 6
    assert found["after"] < found["before"] and not found["kept_nearest"] and not found["guided"]
    assert found["sites"] > 10


def test_nothing_is_added_at_run_time(whole: Path, naive: Path) -> None:
    shapes = []
    for path in (whole, naive):
        loaded = dmq_fx.load(path)
        shapes.append({name: tuple(tensor.shape) for name, tensor in loaded.lowered.state_dict().items()})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("last", [2, 5])
def test_killed_and_resumed_is_the_same(
    last: int, recipe: Path, whole: Path, options: dict[str, Any], compile_killed: Any
) -> None:
    output = recipe.parent / f"killed-{last}"
    assert compile_killed(recipe, output, last, options)[-1] == "00-lora_distill"
    resumed = dmq_fx.compile(recipe, output=output, resume=True, **options)
    assert resumed.digest == open_artifact(whole).manifest.digest


def test_a_run_that_makes_it_worse_is_not_kept(tmp_path: Path, naive: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "wild.yaml"
    path.write_text((RECIPE % ", distance: none").replace("learning_rate: 0.1,", "learning_rate: 1.0,"))
    dmq_fx.compile(path, output=tmp_path / "wild", **options)
    (found,) = (row for row in open_artifact(tmp_path / "wild").report["passes"] if row["pass"] == "lora_distill")
    assert found["kept_nearest"] and not found["after"] < found["before"]
    exact = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "wild", naive)]
    assert exact[0] == exact[1]


def test_nothing_to_learn_is_an_error(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "nothing.yaml"
    path.write_text((RECIPE % "") + "schemes: {body: {weight: none}}\n")
    with pytest.raises(CalibrationError, match="no site has weights that lora_distill could learn"):
        dmq_fx.compile(path, output=tmp_path / "out", **options)


def test_all_weights_shared_with_sites_that_are_left_out(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would be left to learn: an error with its reason, not one of autograd's."""
    path = tmp_path / "shared.yaml"
    path.write_text(RECIPE % "")
    monkeypatch.setattr(lora_distill, "_whole_weights", lambda program, sites: ([], {"proj": "its weight is shared"}))
    with pytest.raises(CalibrationError, match="no site has weights that lora_distill could learn") as error:
        dmq_fx.compile(path, output=tmp_path / "out", **options)
    assert "'proj' is left out: its weight is shared" in (error.value.hint or "")


def test_two_passes_that_choose_integers_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "two.yaml"
    path.write_text((RECIPE % "").replace("passes: [", "passes: [adaround: {}, "))
    with pytest.raises(RecipeError, match="do the same, and the second would undo the first"):
        dmq_fx.compile(path, output=tmp_path / "out", **options)


def test_biases_are_not_corrected_where_weights_were_distilled(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "corrected.yaml"
    given = RECIPE % ", distance: none"
    for passes in (
        given.replace("}]", "}, bias_correction: {}]"),
        given.replace("[lora", "[bias_correction: {}, lora"),
    ):
        path.write_text(passes)
        with pytest.raises(RecipeError, match=r"passes '\w+' and '\w+' exclude each other") as error:
            dmq_fx.compile(path, output=tmp_path / "out", **options)
        assert "leave" in (error.value.hint or "")
    path.write_text(given.replace("}]", "}, output_correction: {}]"))
    dmq_fx.compiler.resolve_recipe(path)
