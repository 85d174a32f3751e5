"""Bias correction takes the mean error of every output channel away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dmq_fx
from dmq_fx.artifact.folder import load_program, open_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.calibration.streaming import quantized_output, stream_sites
from dmq_fx.models import load_model
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import get_tensor

RECIPE = """\
dmq: 1
name: test/corrected
extends: ptq/w4a8
passes: [bias_correction: {batches: 2}]
"""


def channel_errors(artifact: Path, pipeline_folder: Path, cache: CalibrationCache) -> dict[str, Tensor]:
    """Mean output error of every channel over the calibration inputs, with the artifact's biases."""
    model = load_model(str(pipeline_folder / "unet")).denoiser
    program, _ = load_program(open_artifact(artifact), model)
    inputs = next(found for key in cache.root.iterdir() if (found := cache.get(key.name)) and len(found) == 2)
    sums: dict[str, list[Tensor]] = {}

    def collect(planned: PlannedSite, args: tuple[Any, ...], output: Tensor, slot: Tensor | None) -> None:
        if planned.site.bias is None:
            return
        replaced = list(args)
        replaced[2] = get_tensor(program.graph_module, planned.site.bias)
        error = output - quantized_output(program, planned, tuple(replaced), slot)
        axis = output.dim() - 1 if planned.site.op == "linear" else 1
        sums.setdefault(planned.name, []).append(error.movedim(axis, 0).flatten(1).mean(1))

    stream_sites(program, inputs, collect, device=torch.device("cpu"), limit=None, progress=lambda done: None)
    return {name: torch.stack(errors).mean(0) for name, errors in sums.items()}


def test_mean_errors_vanish(tmp_path: Path, pipeline_folder: Path, fast: tuple[str, ...]) -> None:
    cache = CalibrationCache(tmp_path / "cache")
    recipe = tmp_path / "corrected.yaml"
    recipe.write_text(RECIPE)
    options: dict[str, Any] = {"model": str(pipeline_folder), "overrides": fast, "cache": cache}
    dmq_fx.compile("ptq/w4a8", output=tmp_path / "plain", **options)
    dmq_fx.compile(recipe, output=tmp_path / "corrected", **options)
    plain = channel_errors(tmp_path / "plain", pipeline_folder, cache)
    corrected = channel_errors(tmp_path / "corrected", pipeline_folder, cache)
    assert max(float(error.abs().max()) for error in plain.values()) > 1e-3
    assert max(float(error.abs().max()) for error in corrected.values()) < 1e-5
    errors = []
    for name in ("plain", "corrected"):
        rows = open_artifact(tmp_path / name).sites["sites"]
        errors.append({row["name"]: row["sqnr_db"] for row in rows if row.get("sqnr_db") is not None})
    gains = [errors[1][name] - before for name, before in errors[0].items()]
    assert sum(gains) / len(gains) > 0.1  # what `inspect` reports is the error with the corrected biases
    report = open_artifact(tmp_path / "corrected").report["passes"]
    assert report[0]["pass"] == "bias_correction" and report[0]["sites"] == len(corrected)
