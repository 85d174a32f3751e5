"""AdaRound as a pass: better sites than nearest rounding, the same every time, also when it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import dmq_fx
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration import reconstruction
from dmq_fx.calibration.capture import calibration_set
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.calibration.value_store import ValueStore
from dmq_fx.compiler import resolve_recipe
from dmq_fx.errors import CalibrationError
from dmq_fx.models import load_model
from dmq_fx.numerics import quantize_weight
from dmq_fx.passes.adaround import AdaRound, AdaRoundOptions
from dmq_fx.pipeline import advance
from dmq_fx.planning import make_plan
from dmq_fx.program import PassContext, Program
from dmq_fx.roles import find_sites
from dmq_fx.tracing import TracedModel, trace

RECIPE = """\
dmq: 1
name: test/adaround
extends: ptq/w4a8
budget: full
passes: [adaround: {iterations: 60, batch: 8, learning_rate: 0.1%s}]
"""

OPTIONS = AdaRoundOptions(iterations=40, batch=8, learning_rate=0.1, samples=16)


class Memory:
    """A checkpoint that is kept in memory, always due, and that ends the run at a save of choice."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.saved: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.saves = 0
        self.kill_at = kill_at

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.saved

    def save(
        self, tensors: Callable[[], Mapping[str, Tensor]], facts: Mapping[str, Any], *, force: bool = False
    ) -> bool:
        self.saved = ({name: tensor.clone() for name, tensor in tensors().items()}, _copy(facts))
        self.saves += 1
        if self.saves == self.kill_at:
            raise KeyboardInterrupt
        return True


def _copy(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"units": [dict(row) for row in facts["units"]], "running": dict(facts["running"])}


@pytest.fixture(scope="module")
def traced(pipeline_folder: Path) -> TracedModel:
    return trace(load_model(str(pipeline_folder / "unet")).denoiser)


@pytest.fixture(scope="module")
def build(pipeline_folder: Path, traced: TracedModel, cache: CalibrationCache, fast: tuple[str, ...]) -> Callable:
    """A fresh program of the tiny pipeline with adaround at every site, and a context."""
    recipe = resolve_recipe("ptq/w4a8", fast).recipe
    inputs = calibration_set(
        load_model(str(pipeline_folder)),
        traced,
        recipe.calibration,
        identity="tiny",
        cache=cache,
        progress=lambda what, done, total: None,
    )
    plan = make_plan(recipe, find_sites(traced), traced)
    wanted = tuple(replace(planned, passes=("adaround",)) for planned in plan.sites)

    def make(checkpoint: Any = None, progress: Any = lambda what, done, total: None) -> tuple[Program, PassContext]:
        program = Program(traced, replace(plan, sites=wanted), torch.tensor([1.0]))
        context = PassContext(inputs, 0, torch.device("cpu"), progress, checkpoint, "full")
        advance(program, "grouped", context)
        return program, context

    return make


def compiled(
    folder: Path, options: dict[str, Any], more: str = ""
) -> tuple[dmq_fx.CompileResult, dmq_fx.CompileResult, Path, Path]:
    """Artifacts with nearest and with learned rounding."""
    recipe = folder / "adaround.yaml"
    recipe.write_text(RECIPE % more)
    nearest, learned = folder / "nearest", folder / "learned"
    first = dmq_fx.compile("ptq/w4a8", output=nearest, **options)
    return first, dmq_fx.compile(recipe, output=learned, **options), nearest, learned


def model_error(artifact: Path, pipeline_folder: Path) -> float:
    """Mean squared error of a denoiser's output for noise that it was not calibrated on."""
    sample = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    timestep = torch.tensor([999, 749, 499, 249] * 4)
    exact = load_model(str(pipeline_folder / "unet")).denoiser
    with torch.no_grad():
        wanted, found = (model(sample, timestep).sample for model in (exact, dmq_fx.load(artifact)))
    return float((wanted - found).square().mean())


def test_sites_are_better_than_with_nearest_rounding(
    tmp_path: Path, pipeline_folder: Path, fast: tuple[str, ...], cache: CalibrationCache
) -> None:
    # site errors are those for full-precision inputs, layer by layer: what is learned must be the same
    options: dict[str, Any] = {"model": str(pipeline_folder), "overrides": fast, "cache": cache}
    _, _, nearest, learned = compiled(tmp_path, options, ", granularity: layer, asymmetric: false")
    errors = []
    for path in (nearest, learned):
        rows = open_artifact(path).sites["sites"]
        errors.append({row["name"]: row["sqnr_db"] for row in rows if row.get("sqnr_db") is not None})
    gains = [errors[1][name] - before for name, before in errors[0].items()]
    assert sum(gains) / len(gains) > 0.5  # decibels, of weights and activations together


@pytest.mark.slow
def test_the_model_is_better_and_the_same_every_time(
    tmp_path: Path, pipeline_folder: Path, fast: tuple[str, ...], cache: CalibrationCache
) -> None:
    options: dict[str, Any] = {"model": str(pipeline_folder), "overrides": fast, "cache": cache}
    nearest, learned, plain, path = compiled(tmp_path, options)
    again = dmq_fx.compile(tmp_path / "adaround.yaml", output=tmp_path / "again", **options)
    assert learned.digest == again.digest != nearest.digest
    assert model_error(path, pipeline_folder) < 0.8 * model_error(plain, pipeline_folder)
    (report,) = open_artifact(path).report["passes"]
    assert report["pass"] == "adaround" and report["iterations"] == 60 and report["samples"] == 32
    assert report["left_out"] == {} and report["single_layers"] == []
    rows = report["units"]
    assert all(row["learned_loss"] < row["nearest_loss"] for row in rows if not row["kept_nearest"])
    assert len(report["kept_nearest"]) < len(rows) // 4


@pytest.mark.parametrize("granularity", ["layer", "block"])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_every_way_lowers_the_loss_of_units(build: Callable, granularity: str, asymmetric: bool) -> None:
    program, context = build()
    result = AdaRound.run(program, replace(OPTIONS, granularity=granularity, asymmetric=asymmetric), context)
    units = result.report["units"]
    assert sum(row["learned_loss"] for row in units) < 0.8 * sum(row["nearest_loss"] for row in units)
    assert (max(row["sites"] for row in units) > 1) == (granularity == "block")
    weights = {planned.site.weight for planned in program.plan.sites if planned.weight}
    assert set(program.weights) == weights and len(result.modified) == len(weights)
    for planned in program.plan.sites:  # the grid is that of nearest rounding: only integers differ, by one at most
        if planned.weight and planned.site.weight:
            learned = program.weights[planned.site.weight]
            nearest = quantize_weight(program.scaled_weight(planned), planned.weight)
            assert torch.equal(learned.scale, nearest.scale) and torch.equal(learned.zero_point, nearest.zero_point)
            assert int((learned.integers.int() - nearest.integers.int()).abs().max()) <= 1


def test_a_unit_that_gains_nothing_keeps_nearest_rounding_and_says_so(build: Callable) -> None:
    program, context = build()
    result = AdaRound.run(program, replace(OPTIONS, iterations=1, learning_rate=1e-9), context)
    assert result.report["kept_nearest"] == [row["unit"] for row in result.report["units"]]
    for planned in program.plan.sites:
        if planned.weight and planned.site.weight:
            nearest = quantize_weight(program.scaled_weight(planned), planned.weight)
            assert torch.equal(program.weights[planned.site.weight].integers, nearest.integers)


def test_a_run_that_was_killed_goes_on_to_the_same_result(build: Callable) -> None:
    program, context = build()
    whole = AdaRound.run(program, OPTIONS, context)
    for kill_at in (1, 2, 9, 30):  # in the middle of the first unit, at its end, later
        checkpoint = Memory(kill_at)
        killed, ready = build(checkpoint)
        with pytest.raises(KeyboardInterrupt):
            AdaRound.run(killed, OPTIONS, ready)
        assert checkpoint.saved is not None
        running = checkpoint.saved[1]["running"]
        assert 0 < running["iteration"] <= OPTIONS.iterations
        resumed, ready = build(checkpoint)
        result = AdaRound.run(resumed, OPTIONS, ready)
        assert result.report == whole.report
        for name, weight in program.weights.items():
            assert torch.equal(weight.integers, resumed.weights[name].integers), name


def test_memory_bounds_the_samples(build: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    peak: list[int] = []
    original = ValueStore.get

    def watched(self: ValueStore, names: Any) -> Any:
        found = original(self, names)
        peak.append(self.bytes)
        return found

    monkeypatch.setattr(ValueStore, "get", watched)
    program, context = build()
    result = AdaRound.run(program, replace(OPTIONS, memory_budget=1, iterations=2, samples=1000), context)
    assert 1 <= result.report["samples"] < 32  # of 4 steps and 8 images
    assert max(peak) <= 500_000  # two stores of half a megabyte


def test_progress_counts_the_iterations_of_all_units(build: Callable) -> None:
    seen: list[tuple[int, int]] = []
    program, context = build(
        progress=lambda what, done, total: seen.append((done, total)) if what.startswith("adaround · loss ") else None
    )
    result = AdaRound.run(program, OPTIONS, context)
    total = len(result.report["units"]) * OPTIONS.iterations
    assert seen[-1] == (total, total) and seen == sorted(seen)


def test_a_loss_that_is_not_finite_is_an_error_that_names_unit_and_iteration(
    build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = reconstruction.reconstruction_loss, [0]

    def broken(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += output.requires_grad
        return original(output, target) * (float("nan") if calls[0] == 25 else 1.0)

    monkeypatch.setattr(reconstruction, "reconstruction_loss", broken)
    program, context = build()
    with pytest.raises(CalibrationError, match=r"time_embedding\.linear_1: .* not finite at iteration 24"):
        AdaRound.run(program, OPTIONS, context)


def test_weights_are_rounded_as_equivalent_scaling_has_them(build: Callable) -> None:
    program, context = build()
    generator = torch.Generator().manual_seed(0)
    for activation in program.activations:
        consumers = {node for node, _ in activation.consumers}
        shapes = [p.site.shape for p in program.plan.sites if p.site.node in consumers and p.site.weight]
        if shapes:
            program.input_scales[activation.index] = torch.rand(shapes[0][1], generator=generator) * 4 + 0.2
    result = AdaRound.run(program, OPTIONS, context)
    units = result.report["units"]
    assert sum(row["learned_loss"] for row in units) < 0.8 * sum(row["nearest_loss"] for row in units)
    for planned in program.plan.sites:
        if planned.weight and planned.site.weight:
            learned, nearest = (
                program.weights[planned.site.weight],
                quantize_weight(program.scaled_weight(planned), planned.weight),
            )
            assert torch.equal(learned.scale, nearest.scale)
            assert int((learned.integers.int() - nearest.integers.int()).abs().max()) <= 1


def test_shared_weights_keep_nearest_rounding_and_are_reported(tmp_path: Path, architectures: ModuleType) -> None:
    recipe = tmp_path / "adaround.yaml"
    recipe.write_text(RECIPE.replace("ptq/w4a8", "weight-only/w4") % "")
    dmq_fx.compile(
        recipe,
        model=architectures.tiny_model("dit"),
        inputs=architectures.tiny_inputs("dit"),
        output=tmp_path / "dit",
        overrides=("calibration.samples=4", "calibration.batch=2", "calibration.steps=2"),
        cache=CalibrationCache(tmp_path / "cache"),
    )
    (report,) = open_artifact(tmp_path / "dit").report["passes"]
    embedder = "transformer_blocks.0.norm1.emb.timestep_embedder"
    names = [f"{embedder}.linear_{number}{call}" for number in (1, 2) for call in ("", "@1")]
    assert report["left_out"] == dict.fromkeys(names, "its weight is shared by other sites")
    blocks = {row["unit"]: row["sites"] for row in report["units"]}
    assert blocks["transformer_blocks.0"] == 7 and blocks["transformer_blocks.1"] == 9
