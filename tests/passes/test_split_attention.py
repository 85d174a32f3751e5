"""`split_attention` end to end: probabilities have ranges of their own, and an artifact knows what was written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dmq_fx
from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.inspection.why import whole_sites

RECIPE = """\
dmq: 1
name: test/attention
extends: ptq/w8a8@^1
schemes:
  product:
    activation: {bits: 8, symmetric: false, granularity: per_tensor, range: ema_minmax, per_timestep: true}
rules:
  - {match: {op: attention}, scheme: product}
  - {match: {op: [conv2d, linear]}, scheme: body}
"""
Build = Callable[[str], Path]
PASSES = "passes:\n  - split_attention\n"


@pytest.fixture(scope="module")
def build(
    tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path, cache: CalibrationCache, fast: tuple[str, ...]
):
    folder = tmp_path_factory.mktemp("attention")

    def run(passes: str) -> Path:
        recipe, output = folder / "recipe.yaml", folder / f"out{len(passes)}"
        if not output.exists():
            recipe.write_text(RECIPE + passes)
            dmq_fx.compile(recipe, model=str(pipeline_folder), output=output, overrides=fast, cache=cache)
        return output

    return run


def test_probabilities_have_a_range(build: Build) -> None:
    opened = open_artifact(build(PASSES))
    (report,) = opened.report["passes"]
    names = [row["name"] for row in opened.sites["sites"]]
    assert report["sites"] == opened.sites["splits"] or report["left"] == {}
    assert all(
        {f"{name}.scores", f"{name}.values"} <= set(names) and name not in names for name in opened.sites["splits"]
    )
    program, _ = load_program(opened)
    for name in opened.sites["splits"]:
        shares = program.activation_of(program.plan.by_name[f"{name}.values"], 0)
        assert shares is not None and shares.spec.per_timestep
        scale, zero_point = program.qparams[shares.index]
        assert (zero_point == 0).all() and (scale > 0).all() and (scale <= 1 / 255 + 1e-6).all()


def test_an_artifact_is_read_back_as_it_was_compiled(build: Build, pipeline_folder: Path) -> None:
    first, again = (dmq_fx.load(build(PASSES)) for _ in range(2))
    fused = dmq_fx.load(build(""))
    sample, timestep = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    with torch.no_grad():
        results = [unet(sample, timestep, return_dict=False)[0] for unet in (first, again, fused)]
    assert torch.equal(results[0], results[1])
    distance = float((results[0] - results[2]).norm() / results[2].norm())
    assert 0 < distance < 0.05  # eight bits of probabilities


def test_the_rules_were_asked_about_the_whole(build: Build) -> None:
    opened = open_artifact(build(PASSES))
    row = next(row for row in opened.sites["sites"] if row["name"].endswith(".attention.values"))
    assert row["op"] == "matmul" and row["folds"]["split"] == "values"
    whole, part = whole_sites(row, opened.sites["splits"])
    assert (whole.op, part.op) == ("attention", "matmul") and f"{whole.name}.values" == part.name
