"""`inspection.safetensors`: written by a compile, read without torch, and what is said without it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dmq_fx
from dmq_fx.artifact.files import FILES, STATISTICS
from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.artifact.statistics import CHANNELS, run_length, runs
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.errors import ArtifactError
from dmq_fx.inspection import Inspected, inspect_artifact, site_records
from dmq_fx.inspection.inspected import NO_FOLDS, NO_STATISTICS, NO_TRAJECTORY

SPLIT = "up_blocks.0.resnets.0.conv_shortcut.decoder"


def test_scaled_channels_are_those_of_gamma_and_shifts(found: Inspected, folded: Path) -> None:
    """What the file says of x 2^k / gamma and W gamma agrees with the artifact's own gamma."""
    program = load_program(open_artifact(folded))[0]
    planned = program.plan.by_name[SPLIT]
    gamma = program.input_scale(planned)
    assert gamma is not None and found.statistics is not None
    known = found.statistics.of(SPLIT)
    assert known.input is not None and known.weight is not None and known.quantized is not None
    np.testing.assert_allclose(known.weight.after.channels, known.weight.before.channels * gamma.numpy(), rtol=2e-3)
    ratio = known.input.after.channels / (known.input.before.channels / gamma.numpy())
    assert ((ratio > 0.99) & (ratio < 8.1)).all()  # 2^k, k in 0..3, of the timestep that had the largest value
    assert known.input.before.shares.sum() == pytest.approx(1, abs=0.01) and known.input.before.run == 1
    assert known.quantized.shape == (4, 2) and (known.quantized[:, 0] <= 0).all() and (known.quantized[:, 1] > 0).all()


def test_ranges_agree_with_the_calibration(found: Inspected) -> None:
    """Of a site that is not scaled: what the calibration reserved for its first batch is about what was seen."""
    assert found.statistics is not None
    known = (
        found.statistics.of("up_blocks.1.upsamplers.0.conv")
        if "up_blocks.1.upsamplers.0.conv" in found.statistics.sites
        else found.statistics.of("conv_in")
    )
    assert known.input is not None and known.input.before.range is not None and known.quantized is not None
    low, high = known.input.before.range.T
    assert (low < high).all() and np.isfinite(low).all()
    reach = known.quantized[:, 1] - known.quantized[:, 0]
    assert (reach > 0.5 * (high - low)).all() and (reach < 2 * (high - low)).all()


def test_images_of_both_models_and_the_trajectory(found: Inspected, folded: Path) -> None:
    assert found.statistics is not None
    images = found.statistics.images
    assert {name: image.shape for name, image in images.items()} == {
        "full_precision": (4, 3, 16, 16),
        "quantized": (4, 3, 16, 16),
    }
    apart = images["full_precision"].astype(float) - images["quantized"].astype(float)
    assert 0 < np.square(apart / 255).mean() < 0.2
    trajectory = found.errors["trajectory_mse"]
    assert len(trajectory) == 4 and all(0 < value < 1 for value in trajectory)
    measured = dmq_fx.evaluate(folded, samples=4, steps=4, seed=0, batch=4)
    assert measured.trajectory_mse == pytest.approx(trajectory, rel=0.1)  # the sampler was replayed without the model
    assert np.square(apart / 255).mean() == pytest.approx(measured.final_mse, rel=0.2)


def test_the_model_is_left_as_it_was(
    artifact: Path, pipeline_folder: Path, tmp_path: Path, fast: tuple[str, ...], cache: CalibrationCache
) -> None:
    """--no-report: no file of statistics, the same weights and table; inspection says what is missing."""
    dmq_fx.compile(
        "ptq/w8a8", model=str(pipeline_folder), output=tmp_path / "a", overrides=fast, cache=cache, report=False
    )
    assert {file.name for file in (tmp_path / "a").iterdir()} == {*FILES, "manifest.json"}
    for name in ("model.safetensors", "quantization.json"):
        assert (tmp_path / "a" / name).read_bytes() == (artifact / name).read_bytes()
    bare = inspect_artifact(tmp_path / "a")
    assert bare.statistics is None and set(bare.missing) == {NO_STATISTICS, NO_TRAJECTORY}
    assert site_records(bare)[0]["input_kurtosis"] is None


def test_the_same_compile_gives_the_same_bytes(
    artifact: Path, pipeline_folder: Path, tmp_path: Path, fast: tuple[str, ...], cache: CalibrationCache
) -> None:
    dmq_fx.compile("ptq/w8a8", model=str(pipeline_folder), output=tmp_path / "a", overrides=fast, cache=cache)
    assert (tmp_path / "a" / STATISTICS).read_bytes() == (artifact / STATISTICS).read_bytes()


def test_an_artifact_of_an_older_dmq(folded: Path, edited, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    table = json.loads((folded / "quantization.json").read_text())
    for row in table["sites"]:
        row.pop("folds", None)
    report = json.loads((folded / "report.json").read_text())
    del report["errors"]["trajectory_mse"], report["totals"]["paper_bytes"]
    old = inspect_artifact(
        edited(folded, tmp_path / "a", {"quantization.json": table, "report.json": report, STATISTICS: None})
    )
    assert old.missing == (NO_STATISTICS, NO_TRAJECTORY, NO_FOLDS)


def test_statistics_that_are_damaged(folded: Path, edited, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArtifactError, match="the statistics cannot be read"):
        inspect_artifact(edited(folded, tmp_path / "a", {STATISTICS: b"no safetensors"})).statistics  # noqa: B018
    copy = edited(folded, tmp_path / "b", {})
    (copy / STATISTICS).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="truncated"):
        inspect_artifact(copy).statistics  # noqa: B018


def test_an_unknown_site(found: Inspected) -> None:
    with pytest.raises(ArtifactError, match="no site is called 'conv_inn'"):
        found.row("conv_inn")


@pytest.mark.parametrize("channels", [1, 256, 257, 1280, 1281])
def test_many_channels_are_kept_as_runs(channels: int) -> None:
    values = torch.rand(channels, generator=torch.Generator().manual_seed(channels))
    kept = runs(values)
    assert len(kept) <= CHANNELS and kept.max() == values.max()
    assert len(kept) == math.ceil(channels / run_length(channels)) and kept[0] == values[: run_length(channels)].max()


def test_reading_needs_no_torch(folded: Path) -> None:
    """`dmq inspect` answers at once: neither torch nor diffusers is imported."""
    code = (
        "import sys; from dmq_fx.inspection import inspect_artifact; from dmq_fx.inspection.summary import *; "
        f"f = inspect_artifact({str(folded)!r}); summary_json(f, f.rows); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_statistics_of_another_version(folded: Path, edited, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.numpy import save

    for metadata, message in (
        ({"version": 2}, "unknown statistics, version 2"),
        ({"version": 1}, "cannot be read: 'sites'"),
    ):
        content = save({"x": np.zeros(1)}, {"dmq": json.dumps(metadata)})
        with pytest.raises(ArtifactError, match=message):
            inspect_artifact(edited(folded, tmp_path / message[:7], {STATISTICS: content})).statistics  # noqa: B018
