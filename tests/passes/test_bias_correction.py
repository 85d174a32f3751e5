"""Bias correction takes the mean error of every output channel away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dmq_fx
from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.lockstep import Lockstep, SiteCall
from dmq_fx.calibration.minibatches import Minibatches
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.models import load_model
from dmq_fx.program import Program

BATCH = 8
RECIPE = """\
dmq: 1
name: test/{name}
extends: dmq/base@^1
schemes:
  body:
    activation: {{per_timestep: {per_timestep}}}
passes: {passes}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path, fast: tuple[str, ...]) -> Any:
    """Compiles W4A8 under DMQ's policy with some passes; gives the artifact, its program, the calibration."""
    folder = tmp_path_factory.mktemp("corrected")
    cache = CalibrationCache(folder / "cache")
    model = str(pipeline_folder)

    def build(name: str, passes: str, per_timestep: str = "true") -> tuple[Path, Program, Minibatches]:
        recipe = folder / f"{name}.yaml"
        recipe.write_text(RECIPE.format(name=name, passes=passes, per_timestep=per_timestep))
        dmq_fx.compile(recipe, model=model, output=folder / name, overrides=fast, cache=cache)
        program, _ = load_program(open_artifact(folder / name), load_model(model + "/unet").denoiser)
        inputs = next(found for key in cache.root.iterdir() if (found := cache.get(key.name)) and len(found) == 2)
        return (
            folder / name,
            program,
            Minibatches(program.traced, inputs, batch=BATCH, seed=0, device=torch.device("cpu")),
        )

    return build


def mean_errors(program: Program, minibatches: Minibatches, draws: int) -> dict[str, Tensor]:
    """Mean error of every output channel, of what reaches it in the quantized model; halves of a split are summed."""
    sums: dict[str, Tensor] = {}

    def visit(call: SiteCall) -> None:
        axis = call.exact.dim() - 1 if call.planned.site.op == "linear" else 1
        error = (call.exact - call.quantized).movedim(axis, 0).flatten(1).mean(1) / draws
        name = call.planned.name.removesuffix(".decoder").removesuffix(".encoder")
        if name != call.planned.name or call.planned.site.bias:
            sums[name] = sums.get(name, torch.zeros(())) + error

    run = Lockstep(program, visit)
    for draw in range(draws):
        run.forward(minibatches.draw(draw))
    return sums


def largest(errors: dict[str, Tensor]) -> float:
    return max(float(error.abs().max()) for error in errors.values())


@pytest.mark.parametrize("per_timestep", ["true", "false"])
def test_mean_errors_of_a_minibatch_vanish_at_every_site(compiled: Any, per_timestep: str) -> None:
    """One minibatch: every bias is exact for it, though the sites before have moved what reaches it."""
    corrected = f"[split: {{}}, bias_correction: {{batches: 1, batch: {BATCH}, full_precision_sites: true}}]"
    _, plain, minibatches = compiled(f"plain-{per_timestep}", "[split: {}]", per_timestep)
    path, program, _ = compiled(f"one-{per_timestep}", corrected, per_timestep)
    before = largest(mean_errors(plain, minibatches, 1))
    errors = mean_errors(program, minibatches, 1)
    # not zero: a bias of a split's decoder half that changes in its last bit flips roundings further down
    assert before > 1e-2 and largest(errors) < 0.02 * before
    assert program.splits and set(program.splits) <= set(errors)  # whose two halves have one bias
    full_precision = {p.name for p in program.plan.sites if not p.quantized and p.site.bias}
    assert full_precision & set(errors)
    report = open_artifact(path).report["passes"][-1]
    assert report["pass"] == "bias_correction" and report["sites"] >= len(errors)


def test_minibatches_are_averaged(compiled: Any) -> None:
    _, plain, minibatches = compiled("plain", "[split: {}]")
    _, program, _ = compiled("many", f"[split: {{}}, bias_correction: {{batches: 12, batch: {BATCH}}}]")
    assert largest(mean_errors(program, minibatches, 12)) < 0.2 * largest(mean_errors(plain, minibatches, 12))


def test_full_precision_sites_are_left_alone_by_default(compiled: Any) -> None:
    passes = f"[bias_correction: {{batches: 1, batch: {BATCH}}}]"
    path, program, _ = compiled("quantized-only", passes)
    untouched = {planned.site.bias for planned in program.plan.sites if not planned.quantized}
    biases = set(open_artifact(path).sites["biases"])
    assert biases and not biases & untouched
