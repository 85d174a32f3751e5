"""What a backend will make of a recipe, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dmq_fx.backend_api import BACKENDS
from dmq_fx.errors import BackendError, RecipeError
from dmq_fx.gates import BACKEND_PARITY
from dmq_fx.lowering.kernels import Kernel
from dmq_fx.models import load_denoiser_on_meta
from dmq_fx.pass_api import PASSES
from dmq_fx.planning import Plan, make_plan
from dmq_fx.program import Program, group_activations
from dmq_fx.recipe import ResolvedRecipe
from dmq_fx.recipe.language import PassSpec, Recipe
from dmq_fx.roles import find_sites
from dmq_fx.tracing import trace


@dataclass(frozen=True)
class BackendPlan:
    """A plan with the kernel of every site; split sites are listed as the two that they become."""

    plan: Plan
    backend: str
    kernels: Mapping[str, Kernel]

    def to_json(self) -> dict[str, Any]:
        """The object that `dmq plan --backend --json` prints."""
        found = self.plan.to_json()
        return {**found, "backend": self.backend, "sites": [row | self.facts(row["name"]) for row in found["sites"]]}

    def facts(self, site: str) -> dict[str, Any]:
        """A site's kernel, None if it has none, and then the reason."""
        kernel = self.kernels[site]
        return {"kernel": kernel.name, "kernel_reason": kernel.reason}


def plan_backend(
    resolved: ResolvedRecipe, model: str, backend: str, inputs: Mapping[str, Any] | None = None
) -> BackendPlan:
    """The kernel of every site, from the model's configuration alone. Raises BackendError for an unknown backend."""
    target = BACKENDS.get(backend, error=BackendError)
    traced = trace(load_denoiser_on_meta(model).denoiser, dict(inputs) if inputs else None)
    recipe = resolved.recipe
    program = Program(traced, make_plan(recipe, find_sites(traced), traced), torch.zeros(recipe.calibration.steps))
    _foresee(program, recipe.passes)
    return BackendPlan(program.plan, backend, target.kernels(program))


def verified_backend(recipe: Recipe, asked: str | None) -> str | None:
    """The backend to compare with fake quantization: the one asked for, or the recipe's if a gate wants that.

    Raises BackendError for an unknown one, RecipeError for the gate on a recipe whose backend is fake_quant.
    """
    if asked is not None:
        BACKENDS.get(asked, error=BackendError, where="--verify-backend")
        return asked
    if BACKEND_PARITY not in recipe.expect:
        return None
    if recipe.backend == "fake_quant":
        raise RecipeError(
            "backend_parity compares the recipe's backend with fake_quant, and that is the recipe's backend",
            where=f"{recipe.name}: expect.{BACKEND_PARITY}",
            hint="give the recipe a backend, such as x86_int8, or use --verify-backend",
        )
    return recipe.backend


def _foresee(program: Program, passes: Sequence[PassSpec]) -> None:
    """What the passes will have done to sites and activations when the program is lowered."""
    entries = [(PASSES.get(spec.name, where=spec.where), spec.options) for spec in passes]
    rewriting = [pair for pair in entries if "grouped" in getattr(pair[0], "before", ())]
    for entry, options in rewriting:
        _ask(entry, program, options)
    group_activations(program)
    for entry, options in entries:
        if (entry, options) not in rewriting:
            _ask(entry, program, options)


def _ask(entry: Any, program: Program, options: Any) -> None:
    if hasattr(entry, "foresee"):
        entry.foresee(program, options)
