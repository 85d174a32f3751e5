"""What the gates of `expect:` are compared with: measured on the artifact as it will be loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from dmq_fx.artifact.opened import Opened, open_artifact
from dmq_fx.backend_parity import LIMIT, BackendParity, measure_parity
from dmq_fx.backend_plan import verified_backend
from dmq_fx.gates import BACKEND_PARITY, GATE_SAMPLES, MEASURED_BY_SAMPLING, GateResult, check_gates
from dmq_fx.loading import load_opened
from dmq_fx.lowering.parity import TOLERANCE
from dmq_fx.metrics import Evaluation, Progress, compare
from dmq_fx.models import LoadedModel
from dmq_fx.planning import Plan
from dmq_fx.recipe.language import Gate, Recipe
from dmq_fx.sampling import SamplerOptions


@dataclass(frozen=True)
class Measured:
    """The gates of a compile, and what was sampled for them."""

    gates: tuple[GateResult, ...] = ()
    evaluation: Evaluation | None = None
    parity: BackendParity | None = None


def measure_gates(
    artifact: Any,
    loaded: LoadedModel,
    recipe: Recipe,
    plan: Plan,
    *,
    device: torch.device,
    verify_backend: str | None = None,
    inputs: dict[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Measured:
    """Measure what `recipe.expect` asks for; verify_backend: also that backend beside fake quantization.

    Nothing is sampled that no gate needs.
    """
    backend = verified_backend(recipe, verify_backend)
    expect = dict(recipe.expect)
    if backend is not None:
        expect.setdefault(BACKEND_PARITY, Gate(max=LIMIT))
    if not expect:
        return Measured()
    opened = open_artifact(artifact)
    calibration = recipe.calibration
    unseen = calibration.seed + calibration.samples  # not the noise that the ranges were found on
    options = replace(SamplerOptions.of(calibration), seed=unseen)
    measured = _sizes(opened, plan)
    evaluation = parity = None
    if MEASURED_BY_SAMPLING & set(expect):
        quantized = load_opened(opened, backend="fake_quant", device=device, model=_own_class(opened, loaded))
        evaluation, _, _ = compare(loaded, quantized, options, GATE_SAMPLES, progress, inputs)
        measured |= _errors(evaluation)
    sites: tuple[GateResult, ...] = ()
    if backend is not None:
        parity = measure_parity(opened, loaded, backend, options, inputs=inputs, progress=progress)
        measured[BACKEND_PARITY] = parity.difference
        passed = parity.site_error <= TOLERANCE
        sites = (GateResult(f"error of site {parity.worst_site!r}", None, TOLERANCE, parity.site_error, passed),)
    return Measured((*check_gates(expect, measured), *sites), evaluation, parity)


def _own_class(opened: Opened, loaded: LoadedModel) -> Any:
    """The original module, where the artifact cannot build its class."""
    return loaded.denoiser if opened.model["origin"].startswith("python:") else None


def _sizes(opened: Opened, plan: Plan) -> dict[str, float]:
    tensors = opened.manifest.record("model.safetensors")
    return {
        "weight_megabytes": (tensors.size if tensors else 0) / 1e6,
        "megabytes": opened.bytes / 1e6,
        "mean_weight_bits": plan.totals.mean_weight_bits,
        "bops": float(plan.totals.bops),
    }


def _errors(evaluation: Evaluation) -> dict[str, float]:
    return {
        "trajectory_mse": sum(evaluation.trajectory_mse) / len(evaluation.trajectory_mse),
        "final_mse": evaluation.final_mse,
        "final_psnr": float("inf") if evaluation.final_psnr is None else evaluation.final_psnr,
    }
