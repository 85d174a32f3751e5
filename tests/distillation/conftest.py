"""A calibrated program of the tiny pipeline, and a context to learn in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmq_fx.calibration.capture import calibration_set
from dmq_fx.calibration.store import CalibrationCache, CalibrationSet
from dmq_fx.compiler import resolve_recipe
from dmq_fx.models import LoadedModel, load_model
from dmq_fx.pipeline import advance
from dmq_fx.planning import Plan, make_plan
from dmq_fx.program import PassContext, Program
from dmq_fx.recipe.language import Recipe
from dmq_fx.roles import find_sites
from dmq_fx.sampling import Sampler, SamplerOptions
from dmq_fx.tracing import TracedModel, trace

Parts = tuple[LoadedModel, TracedModel, Recipe, CalibrationSet, Plan]
Make = Callable[..., tuple[Program, PassContext]]


@pytest.fixture(scope="session")
def parts(pipeline_folder: Path, cache: CalibrationCache, fast: tuple[str, ...]) -> Parts:
    """Model, graph, `efficientdm/w3a6`, its calibration inputs and plan."""
    loaded = load_model(str(pipeline_folder))
    traced = trace(loaded.denoiser)
    recipe = resolve_recipe("efficientdm/w3a6", fast).recipe
    inputs = calibration_set(
        loaded, traced, recipe.calibration, identity="tiny", cache=cache, progress=lambda what, done, total: None
    )
    return loaded, traced, recipe, inputs, make_plan(recipe, find_sites(traced), traced)


@pytest.fixture(scope="session")
def make(parts: Parts) -> Make:
    """A fresh calibrated program and a context; `before` is called with the program when it is grouped."""
    loaded, traced, recipe, inputs, plan = parts

    def build(
        checkpoint: Any = None, before: Callable[[Program], None] = lambda program: None, seed: int = 0
    ) -> tuple[Program, PassContext]:
        program = Program(traced, plan, torch.tensor(inputs.timesteps))
        sampler = Sampler(loaded, SamplerOptions.of(recipe.calibration))
        context = PassContext(
            inputs, seed, torch.device("cpu"), lambda what, done, total: None, checkpoint, "full", sampler
        )
        advance(program, "grouped", context)
        before(program)
        advance(program, "calibrated", context)
        return program, context

    return build
