"""The errors that an artifact's report holds: of every site and sampler step, where they are made and added up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.errors_by_site import finite, measure_propagation, weight_sqnr
from dmq_fx.models import LoadedModel
from dmq_fx.program import PassContext, Program
from dmq_fx.recipe.language import Calibration
from dmq_fx.runtime import QuantizedDenoiser
from dmq_fx.sampling import Sampler, SamplerOptions, watch_outputs

SiteErrors = dict[str, dict[str, Any]]


def error_report(
    program: Program,
    loaded: LoadedModel,
    calibration: Calibration,
    context: PassContext,
    inputs: Mapping[str, Any] | None = None,
) -> tuple[SiteErrors, dict[str, Any]]:
    """Errors of a program whose passes have all run, over one calibration batch.

    Returns every site's numbers over all steps (`weight_sqnr_db`, `sqnr_db`), and the part `errors` of report.json:
    `local_sqnr_db` and `accumulated_sqnr_db` of every site by timestep slot; by denoiser call, which may be more, the
    prediction's `prediction_mse_same_input` (both models are given full precision's state) and `prediction_mse` (each
    on its own path, from the same noise). None for what is not finite.
    """
    by_site: SiteErrors = {name: {"weight_sqnr_db": value} for name, value in weight_sqnr(program).items()}
    if context.calibration is None:
        return by_site, {}
    steps = context.calibration.steps
    found = measure_propagation(
        program,
        context.calibration,
        device=context.device,
        limit=1,
        progress=lambda done: context.progress("measuring sites", done, steps),
    )
    for name, power in found.local.items():
        by_site.setdefault(name, {})["sqnr_db"] = power.sqnr_db
    predictions = _own_path(program, loaded, calibration, context, len(found.predictions), inputs)
    pairs = zip(found.predictions, predictions, strict=True)
    added_up = [finite(float((exact.double() - own.double()).square().mean())) for exact, own in pairs]
    return by_site, {**found.to_json(), "prediction_mse": added_up}


def _own_path(
    program: Program,
    loaded: LoadedModel,
    calibration: Calibration,
    context: PassContext,
    calls: int,
    inputs: Mapping[str, Any] | None,
) -> list[Tensor]:
    """What the quantized model predicts at every call while it samples the first calibration batch itself."""
    info = {"compute_dtype": next((p.dtype for p in loaded.denoiser.parameters()), torch.float32)}
    denoiser = (
        QuantizedDenoiser(program.graph_module, program.original, loaded.denoiser, info).eval().to(context.device)
    )
    sampler = Sampler(loaded, SamplerOptions.of(calibration), inputs)
    predictions: list[Tensor] = []

    def keep(output: Tensor) -> None:
        predictions.append(output.cpu())
        context.progress("measuring path", len(predictions), calls)

    with watch_outputs(denoiser, keep):
        next(sampler.run(min(calibration.batch, calibration.samples), denoiser))
    return predictions
