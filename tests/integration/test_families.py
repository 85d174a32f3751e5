"""Every architecture family once end to end: trace, plan, calibrate, convert, write, load, run."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

import dmq_fx
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.metrics import compare
from dmq_fx.models import load_model
from dmq_fx.sampling import SamplerOptions

FAMILIES = (
    "ddpm",
    "ddpm-class",
    "sd",
    "sdxl",
    "dit",
    "pixart-alpha",
    "pixart-sigma",
    "sd3",
    "flux",
    "sana",
    "hunyuan-dit",
    "cogvideox",
    "wan",
)


def test_every_tiny_model_is_here(architectures: ModuleType) -> None:
    assert set(architectures.TINY) == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_eight_bits_are_close_to_float(
    name: str, architectures: ModuleType, tmp_path: Path, cache: CalibrationCache
) -> None:
    model, inputs = architectures.tiny_model(name), architectures.tiny_inputs(name)
    overrides = ("calibration.samples=4", "calibration.batch=2", "calibration.steps=2")
    result = dmq_fx.compile(
        "ptq/w8a8", model=model, inputs=inputs, output=tmp_path / "out", overrides=overrides, cache=cache
    )
    totals = result.plan.totals
    assert totals.mean_weight_bits == 8.0
    assert totals.quantized_parameters > 0.5 * totals.parameters
    quantized = dmq_fx.load(tmp_path / "out")  # the class is diffusers' own: nothing but the files is needed
    found, exact, approximate = compare(
        load_model(model), quantized, SamplerOptions(steps=2, batch=2), 2, inputs=inputs
    )
    assert exact.shape == approximate.shape and not torch.equal(exact, approximate)
    assert found.trajectory_cosine[0] > 0.99 and found.trajectory_cosine[-1] > 0.95
    measured = [site["sqnr_db"] for site in open_artifact(tmp_path / "out").sites["sites"] if "precision" in site]
    assert min(value for value in measured if value is not None) > 15
