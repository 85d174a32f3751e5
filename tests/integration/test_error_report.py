"""The errors by site and step in report.json, and the same along a sampler in `dmq eval`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import dmq_fx
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.errors_by_site import Power, finite
from dmq_fx.calibration.store import CalibrationCache


@pytest.fixture(scope="module")
def coarse(
    tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path, fast: tuple[str, ...], cache: CalibrationCache
) -> Path:
    """W4A6 of the tiny pipeline: coarse enough that errors add up."""
    path = tmp_path_factory.mktemp("coarse") / "w4a6"
    dmq_fx.compile("ptq/w4a6", model=str(pipeline_folder), output=path, overrides=fast, cache=cache)
    return path


def test_errors_by_site_and_step(coarse: Path) -> None:
    opened = open_artifact(coarse)
    errors = opened.report["errors"]
    steps = len(opened.report["timesteps"])
    rows = {row["name"]: row for row in opened.sites["sites"]}
    quantized = {name for name, row in rows.items() if "precision" in row}
    assert set(errors["local_sqnr_db"]) == quantized and quantized < set(errors["accumulated_sqnr_db"])
    for kind in ("local_sqnr_db", "accumulated_sqnr_db"):
        assert all(len(values) == steps == 4 for values in errors[kind].values())
    for name in quantized:  # the number over all steps lies among those of the steps
        by_step = [value for value in errors["local_sqnr_db"][name] if value is not None]
        assert min(by_step) - 0.01 <= rows[name]["sqnr_db"] <= max(by_step) + 0.01
    last = [errors[kind]["up_blocks.1.resnets.1.conv2"] for kind in ("local_sqnr_db", "accumulated_sqnr_db")]
    assert all(local > 3 + added for local, added in zip(*last, strict=True))


def test_what_is_not_finite_is_none() -> None:
    power = Power(2)
    power.add(torch.ones(2, 3), torch.tensor([[1.0, 2, 3], [math.inf] * 3]), torch.tensor([0, 1]))
    assert power.by_slot == [pytest.approx(-2.218, abs=1e-3), None] and power.sqnr_db is None
    assert finite(math.nan) is None and finite(math.inf) is None and finite(0.123456789) == 0.123457


@pytest.mark.parametrize("slot", [None, [0], [1, 0], [1, 1, 0], [1, 0, 1, 0]])
def test_power_in_chunks(slot: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows follow the batch where its size divides them: 6 rows are not of four samples, and count for the first."""
    monkeypatch.setattr("dmq_fx.calibration.errors_by_site.CHUNK_ELEMENTS", 10)
    exact, other = torch.randn(2, 4, 3, 6, generator=torch.Generator().manual_seed(0)).transpose(1, 3)
    power = Power(2)
    power.add(exact, other, None if slot is None else torch.tensor(slot))
    of_row = [slot[row * len(slot) // 6] for row in range(6)] if slot and len(slot) < 4 else [(slot or [0])[0]] * 6
    signal, noise = torch.zeros(2, 2, dtype=torch.float64)
    for row, place in enumerate(of_row):
        signal[place] += exact[row].double().square().sum()
        noise[place] += (exact[row].double() - other[row].double()).square().sum()
    torch.testing.assert_close((power.signal, power.noise), (signal, noise), rtol=1e-14, atol=0)


def test_errors_of_the_prediction_add_up(coarse: Path) -> None:
    """The first call has the same input on both paths; further on, the quantized model's own path is worse."""
    errors = open_artifact(coarse).report["errors"]
    local, own = errors["prediction_mse_same_input"], errors["prediction_mse"]
    assert len(local) == len(own) == 4 and own[0] == pytest.approx(local[0], rel=0.02)
    assert own[-1] > 1.2 * local[-1]
    found = dmq_fx.evaluate(coarse, samples=4, steps=4, seed=0, batch=4)
    assert found.prediction_mse == pytest.approx(own, rel=0.1)
    assert found.prediction_mse_same_input == pytest.approx(local, rel=0.1)
