"""`dmq bench`: what is timed, of what inputs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dmq_fx.bench import bench, noise_inputs
from dmq_fx.cli import app
from dmq_fx.errors import BackendError, DmqError
from dmq_fx.models import load_model


def test_side_by_side(artifact: Path, pipeline_folder: Path) -> None:
    said: list[str] = []
    found = bench(
        artifact,
        load_model(str(pipeline_folder)),
        variants=("fp32", "bf16", "fake_quant"),
        batches=(1, 3),
        rounds=3,
        compile=False,
        progress=lambda what, done, total: said.append(what),
    )
    assert [(row.variant, row.batch) for row in found.timings] == [
        (variant, batch) for batch in (1, 3) for variant in ("fp32", "bf16", "fake_quant")
    ]
    assert all(0 < row.fastest <= row.milliseconds for row in found.timings)
    for first, *others in (found.timings[:3], found.timings[3:]):
        assert first.ratio == 1.0
        assert all(other.ratio == first.milliseconds / other.milliseconds for other in others)
    assert (found.threads, found.rounds) == (1, 3) and found.peak_megabytes > 100
    assert said.count("timing batch 3") == 3


def test_command(artifact: Path, pipeline_folder: Path) -> None:
    options = ["--no-compile", "--rounds", "1", "--batch", "2", "--model", str(pipeline_folder)]
    result = CliRunner().invoke(app, ["bench", str(artifact), "--backends", "fake_quant,fp32", *options, "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) == {"threads", "rounds", "timings", "peak_megabytes"}
    assert [row["variant"] for row in found["timings"]] == ["fake_quant", "fp32"]
    table = CliRunner().invoke(app, ["bench", str(artifact), "--backends", "fake_quant", *options])
    assert table.exit_code == 0 and "times fake_quant" in table.stdout and "peak" in table.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backends", ","], "nothing to time"),
        (["--backends", "fp16"], "nothing called 'fp16' can be timed"),
        (["--device", "foo"], "unknown device 'foo'"),
        (["--batch", "0"], "'0' is no list of batch sizes"),
        (["--batch", "1,two"], "'1,two' is no list of batch sizes"),
    ],
)
def test_bad_arguments(artifact: Path, options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", str(artifact), *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_what_is_refused(artifact: Path) -> None:
    with pytest.raises(DmqError, match="nothing to time"):
        bench(artifact, None, variants=())
    with pytest.raises(BackendError, match="the full-precision model is not there"):
        bench(artifact, None, variants=("fp32",))


def test_inputs_are_noise_all_through() -> None:
    """Also what lies in sequences: memory that nobody has written may hold anything, and be slow to compute with."""
    tensors = [
        {"keys": [name, *path], "shape": shape, "dtype": dtype}
        for name, path, shape, dtype in (
            ("sample", [], [2, 3, 4], "float32"),
            ("timestep", [], [2], "int64"),
            ("more", ["text"], [2, 5], "float16"),
            ("more", ["skips", 0], [2, 6], "float32"),
            ("more", ["skips", 1], [2, 7], "int64"),
        )
    ]
    opened: Any = SimpleNamespace(
        manifest=SimpleNamespace(content={"inputs": {"tensors": tensors, "constants": {"flag": True}}}),
        report={"timesteps": [900.0, 500.0, 100.0]},
    )
    found = noise_inputs(opened, 300)
    assert found["flag"] is True
    assert found["timestep"].tolist() == [500] * 300
    floats = [found["sample"], found["more"]["text"], found["more"]["skips"][0]]
    assert [tuple(x.shape) for x in floats] == [(300, 3, 4), (300, 5), (300, 6)]
    assert [x.dtype for x in floats] == [torch.float32, torch.float16, torch.float32]
    for x in floats:
        assert abs(float(x.float().std()) - 1) < 0.1 and not torch.equal(x[0], x[1])
    assert not found["more"]["skips"][1].any()
    again = noise_inputs(opened, 300)
    assert torch.equal(again["more"]["skips"][0], floats[2])
