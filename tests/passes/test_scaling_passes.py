"""`smoothquant` and `les` end to end: an outlier that they take away, determinism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline

import dmq_fx
from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.errors import CalibrationError, RecipeError
from dmq_fx.passes.les import Learner

SITE = "mid_block.attentions.0.to_q"
RECIPE = """\
dmq: 1
name: test/scaled
extends: dmq/base@^1
budget: full
passes:
  - {{{scaling}}}
"""
LES = "les: {iterations: 60, batch: 8, learning_rate: 0.05, init: ones}"
LES_BFLOAT16 = LES.replace("init", "precision: bfloat16, init")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Path:
    """The tiny pipeline with one channel of an attention's norm times 20 and the weights that read it over 20."""
    pipeline = DDIMPipeline.from_pretrained(pipeline_folder)
    attention = pipeline.unet.mid_block.attentions[0]
    with torch.no_grad():
        for parameter in (attention.group_norm.weight, attention.group_norm.bias):
            parameter[5] *= 20
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            layer.weight[:, 5] /= 20
    folder = tmp_path_factory.mktemp("planted") / "model"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def build(
    tmp_path_factory: pytest.TempPathFactory, planted: Path, cache: CalibrationCache, fast: tuple[str, ...]
) -> Any:
    folder = tmp_path_factory.mktemp("scaled")

    def run(name: str, scaling: str, **options: Any) -> Path:
        recipe = folder / f"{name}.yaml"
        recipe.write_text(RECIPE.format(scaling=scaling) if scaling else RECIPE.split("passes:")[0])
        dmq_fx.compile(recipe, model=str(planted), output=folder / name, overrides=fast, cache=cache, **options)
        return folder / name

    return run


def sqnr(artifact: Path) -> dict[str, float]:
    return {row["name"]: row["sqnr_db"] for row in open_artifact(artifact).sites["sites"] if row.get("sqnr_db")}


@pytest.mark.parametrize(
    "scaling", ["smoothquant: {}", LES, LES_BFLOAT16], ids=["smoothquant", "les", "les in bfloat16"]
)
def test_an_outlier_is_taken_away(build: Any, scaling: str) -> None:
    plain, scaled = build(f"plain{len(scaling)}", ""), build(f"with{len(scaling)}", scaling)
    before, after = sqnr(plain), sqnr(scaled)
    assert after[SITE] > before[SITE] + 3
    program, _ = load_program(open_artifact(scaled))
    planned = program.plan.by_name[SITE]
    gamma = program.input_scale(planned)
    assert gamma is not None and float(gamma[5] / gamma.median()) > 3
    for other in ("to_k", "to_v"):
        assert program.input_scale(program.plan.by_name[SITE.replace("to_q", other)]) is gamma
    activation = program.activation_of(planned, 0)
    assert activation is not None and activation.index in program.folded  # the norm before it took 1 / gamma in
    quantize = [n for n in program.graph_module.graph.nodes if SITE in n.meta.get("dmq", {}).get("sites", ())]
    assert not any("affine" in str(node.target) for node in quantize)


def test_les_never_ends_worse_than_it_began(build: Any) -> None:
    report = open_artifact(build("judged", LES)).report["passes"][0]
    assert report["groups"] and report["iterations"] == 60
    for name, row in report["groups"].items():
        none, begin, end = row["loss"]
        assert row["gamma"] is None or min(begin, end) <= none, name
        assert (name in report["kept"]) == (end >= min(none, begin))


def test_learning_that_made_it_worse_is_thrown_away(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = Learner.learn

    def spoiled(self: Learner) -> None:
        learn(self)
        for parameter in self.parameters:
            parameter.data[0] += 6.0  # one channel's weights 400 times as large as the others'

    monkeypatch.setattr(Learner, "learn", spoiled)
    opened = open_artifact(build("spoiled", LES))
    report = opened.report["passes"][0]
    assert len(report["kept"]) > 0.8 * len(report["groups"])
    program, _ = load_program(opened)
    kept = [a for a in program.activations if a.sites[0] in report["kept"]]
    assert kept and not any(a.index in program.input_scales for a in kept)


def test_divergence_names_site_and_iteration(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dmq_fx.calibration.local_loss import LocalLoss

    original = LocalLoss.of_site

    def broken(self: Any, planned: Any, *args: Any) -> torch.Tensor:
        losses = original(self, planned, *args)
        return losses * float("nan") if planned.name == SITE and losses.requires_grad else losses

    monkeypatch.setattr(LocalLoss, "of_site", broken)
    with pytest.raises(CalibrationError) as caught:
        build("broken", LES)
    assert SITE in str(caught.value) and "iteration 0" in str(caught.value)


def test_a_pass_that_comes_too_late_is_an_error_at_its_line(tmp_path: Path) -> None:
    recipe = tmp_path / "late.yaml"
    recipe.write_text(RECIPE.format(scaling="pts: {}") + "  - les: {}\n")
    with pytest.raises(RecipeError) as caught:
        dmq_fx.plan(recipe)
    assert "late.yaml:7" in str(caught.value) and "'les' must come before 'pts'" in str(caught.value)


def test_gamma_is_learned_before_weights_are_rounded(tmp_path: Path) -> None:
    recipe = tmp_path / "late.yaml"
    recipe.write_text(RECIPE.format(scaling="gptq: {}") + "  - smoothquant: {}\n")
    with pytest.raises(RecipeError, match="'smoothquant' must come before 'gptq'"):
        dmq_fx.plan(recipe)


def test_one_pass_chooses_the_scales_and_one_the_integers(tmp_path: Path) -> None:
    recipe = tmp_path / "twice.yaml"
    for first, second in (("smoothquant", "les"), ("gptq", "adaround")):
        recipe.write_text(RECIPE.format(scaling=f"{first}: {{}}") + f"  - {second}: {{}}\n")
        with pytest.raises(RecipeError, match=f"'{second}' and '{first}' do the same"):
            dmq_fx.plan(recipe)
