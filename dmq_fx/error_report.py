"""The errors that an artifact's report holds: of every site and sampler step, where they are made and added up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.artifact.statistics import encode_statistics
from dmq_fx.calibration.errors_by_site import finite, measure_propagation, weight_sqnr
from dmq_fx.calibration.lockstep import SiteCall
from dmq_fx.calibration.site_statistics import StatisticsCollector
from dmq_fx.models import LoadedModel
from dmq_fx.program import PassContext, Program
from dmq_fx.recipe.language import Calibration
from dmq_fx.runtime import DenoiserOutput, Original, QuantizedDenoiser
from dmq_fx.sampling import Sampler, SamplerOptions, watch_outputs, watch_steps

SiteErrors = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ErrorReport:
    """What a compile measured of its result.

    by_site: every site's numbers over all steps (`weight_sqnr_db`, `sqnr_db`). by_step: the part `errors` of
    report.json: `local_sqnr_db` and `accumulated_sqnr_db` of every site by timestep slot; by denoiser call, which may
    be more, the prediction's `prediction_mse_same_input` (both models are given full precision's state) and
    `prediction_mse` (each on its own path, from the same noise); by sampler step `trajectory_mse`, of the state.
    None for what is not finite. statistics: tensors and metadata of inspection.safetensors; None if not wanted.
    """

    by_site: SiteErrors
    by_step: dict[str, Any]
    statistics: tuple[dict[str, Tensor], dict[str, Any]] | None = None


def error_report(
    program: Program,
    loaded: LoadedModel,
    calibration: Calibration,
    context: PassContext,
    inputs: Mapping[str, Any] | None = None,
    *,
    statistics: bool = True,
) -> ErrorReport:
    """Errors of a program whose passes have all run, over one calibration batch.

    statistics: also what sites' inputs and weights look like, and images of both models.
    """
    by_site: SiteErrors = {name: {"weight_sqnr_db": value} for name, value in weight_sqnr(program).items()}
    collector = StatisticsCollector(program)
    if context.calibration is None:
        return ErrorReport(by_site, {}, encode_statistics(collector) if statistics else None)
    steps = context.calibration.steps

    def watch(call: SiteCall) -> None:
        if statistics:
            collector.see(call.planned, call.exact_args[call.planned.site.operands[0]], call.slot)

    found = measure_propagation(
        program,
        context.calibration,
        device=context.device,
        limit=1,
        progress=lambda done: context.progress("measuring sites", done, steps),
        watch=watch,
    )
    for name, power in found.local.items():
        by_site.setdefault(name, {})["sqnr_db"] = power.sqnr_db
    sampler = Sampler(loaded, SamplerOptions.of(calibration), inputs)
    samples = min(calibration.batch, calibration.samples)
    own = _own_path(program, loaded, sampler, samples, context, len(found.predictions))
    by_step = {**found.to_json(), "prediction_mse": _mse(found.predictions, own.predictions)}
    if not statistics:
        return ErrorReport(by_site, by_step)
    exact = _replay(loaded, sampler, samples, found.predictions)
    by_step["trajectory_mse"] = _mse(exact.states, own.states)
    return ErrorReport(by_site, by_step, encode_statistics(collector, (exact.images, own.images)))


@dataclass
class _Path:
    """One model's way through the sampler: its predictions, the states after each step, the images."""

    predictions: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    images: Tensor = field(default_factory=lambda: torch.empty(0))


def _mse(exact: Sequence[Tensor], own: Sequence[Tensor]) -> list[float | None]:
    pairs = zip(exact, own, strict=True)
    return [finite(float((one.double() - other.double()).square().mean())) for one, other in pairs]


def _own_path(
    program: Program,
    loaded: LoadedModel,
    sampler: Sampler,
    samples: int,
    context: PassContext,
    calls: int,
) -> _Path:
    """The quantized model's, while it samples the first calibration batch itself."""
    info = {"compute_dtype": next((p.dtype for p in loaded.denoiser.parameters()), torch.float32)}
    original = Original(lambda: loaded.denoiser)
    denoiser = QuantizedDenoiser(program.graph_module, program.original, original, info).eval().to(context.device)
    path = _Path()

    def keep(output: Tensor) -> None:
        path.predictions.append(output.cpu())
        context.progress("measuring path", len(path.predictions), calls)

    with watch_outputs(denoiser, keep), watch_steps(sampler.scheduler, lambda state: path.states.append(state.cpu())):
        path.images = next(sampler.run(samples, denoiser)).cpu()
    return path


def _replay(loaded: LoadedModel, sampler: Sampler, samples: int, predictions: Sequence[Tensor]) -> _Path:
    """Full precision's, of predictions that are known: the sampler without the denoiser's work."""
    path = _Path(list(predictions))
    with (
        _answers(loaded.denoiser, predictions),
        watch_steps(sampler.scheduler, lambda state: path.states.append(state.cpu())),
    ):
        path.images = next(sampler.run(samples)).cpu()
    return path


@contextmanager
def _answers(denoiser: nn.Module, predictions: Sequence[Tensor]) -> Iterator[None]:
    """Let `denoiser` answer its calls with `predictions`, in turn."""
    left = iter(predictions)
    device = next((parameter.device for parameter in denoiser.parameters()), torch.device("cpu"))

    @wraps(denoiser.forward)  # pipelines look at its signature to see what it takes
    def forward(*args: Any, return_dict: bool = True, **kwargs: Any) -> DenoiserOutput | tuple[Tensor, ...]:
        sample = next(left).to(device)
        return DenoiserOutput(sample=sample) if return_dict else (sample,)

    own = denoiser.__dict__.get("forward")  # offloading puts one there
    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward
        if own is not None:
            denoiser.forward = own
