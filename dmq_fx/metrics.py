"""How far a quantized model strays from full precision when both start from the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dmq_fx.errors import DmqError
from dmq_fx.models import LoadedModel
from dmq_fx.sampling import Sampler, SamplerOptions, watch_inputs, watch_outputs, watch_steps

if TYPE_CHECKING:
    from dmq_fx.quality.measure import Quality

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """Errors of a quantized model against full precision, same noise.

    trajectory_mse, trajectory_cosine: error and cosine of the sampler's state after each step.
    prediction_mse: error of the denoiser's output at each call, each model on its own path: what has added up.
    prediction_mse_same_input: the same where both are given full precision's state: what the call itself adds. Empty
    where it was not asked for.
    samples: images that these errors are of. quality: metrics of many more, if any were asked for.
    final_mse, final_psnr: of the images (0..1; latents where there is no decoder); PSNR in dB, None if equal.
    prompts, used in turn, and guidance_scale (None: the pipeline's own): what was asked for beside the noise.
    """

    samples: int
    steps: int
    seed: int
    trajectory_mse: list[float]
    trajectory_cosine: list[float]
    prediction_mse: list[float]
    final_mse: float
    final_psnr: float | None
    prediction_mse_same_input: list[float] = field(default_factory=list)
    prompts: tuple[str, ...] = ()
    guidance_scale: float | None = None
    quality: Quality | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `dmq eval --json` prints."""
        values = asdict(replace(self, quality=None)) | {"prompts": list(self.prompts)}
        return values | {"quality": None if self.quality is None else self.quality.to_json()}


@dataclass
class _Track:
    """One run's states, predictions and images, and what the denoiser was called with if wanted."""

    states: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    images: Tensor = field(default_factory=lambda: torch.empty(0))


def compare(
    loaded: LoadedModel,
    quantized: nn.Module,
    options: SamplerOptions,
    samples: int,
    progress: Progress = lambda what, done, total: None,
    inputs: Mapping[str, Any] | None = None,
    *,
    same_input: bool = False,
) -> tuple[Evaluation, Tensor, Tensor]:
    """Sample both models from the same noise; inputs: what a denoiser without a pipeline is called with.

    same_input: also ask the quantized model at every state of the full-precision one, which is half as much work again.
    Returns the errors, and the images of full precision and of the quantized model.
    """
    sampler = Sampler(loaded, options, inputs)
    sums: dict[str, list[float]] = {}
    pairs: list[tuple[Tensor, Tensor]] = []
    reference_run = _tracked(sampler, samples, loaded.denoiser, inputs=same_input)
    quantized_run = _tracked(sampler, samples, quantized)
    for reference, candidate in zip(reference_run, quantized_run, strict=True):
        count = len(reference.images)
        _add(sums, "trajectory_mse", [count * _mse(*p) for p in _zip(reference.states, candidate.states)])
        _add(sums, "trajectory_cosine", [count * _cosine(*p) for p in _zip(reference.states, candidate.states)])
        predictions = _zip(reference.predictions, candidate.predictions)
        _add(sums, "prediction_mse", [count * _mse(*p) for p in predictions])
        if same_input:
            asked = [_ask(quantized, *call) for call in reference.inputs]
            same = [count * _mse(*p) for p in _zip(reference.predictions, asked)]
            _add(sums, "prediction_mse_same_input", same)
        pairs.append((reference.images, candidate.images))
        progress("evaluating", sum(len(a) for a, _ in pairs), samples)
    exact, approximate = (torch.cat(images) for images in zip(*pairs, strict=True))
    final = _mse(exact, approximate)
    if not math.isfinite(final):
        which = "quantized" if bool(torch.isfinite(exact).all()) else "full-precision"
        raise DmqError(f"the {which} model's samples are not finite", hint="`dmq inspect` shows each site's error")
    peak = 1.0 if loaded.pipeline is not None else float(exact.max() - exact.min())
    means = {name: [value / samples for value in values] for name, values in sums.items()}
    evaluation = Evaluation(
        samples=samples,
        steps=options.steps,
        seed=options.seed,
        final_mse=final,
        final_psnr=10 * math.log10(peak**2 / final) if final > 0 else None,
        trajectory_mse=means["trajectory_mse"],
        trajectory_cosine=means["trajectory_cosine"],
        prediction_mse=means["prediction_mse"],
        prediction_mse_same_input=means.get("prediction_mse_same_input", []),
        prompts=options.prompts,
        guidance_scale=options.guidance_scale,
    )
    return evaluation, exact, approximate


def _copied(call: tuple[Any, ...]) -> Any:
    """Arguments of a call in memory of their own: pipelines pass views, and may write into their tensors later."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, call)


def _ask(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return denoiser(*args, **kwargs)[0].cpu()


def _tracked(sampler: Sampler, samples: int, denoiser: nn.Module, *, inputs: bool = False) -> Any:
    """Yield a _Track for every batch. Two of these generators may be advanced in turn: hooks live only in a batch."""
    batches = sampler.run(samples, denoiser)
    while True:
        track = _Track()
        with ExitStack() as stack:
            stack.enter_context(watch_steps(sampler.scheduler, lambda state: track.states.append(state.cpu())))  # noqa: B023
            stack.enter_context(watch_outputs(denoiser, lambda out: track.predictions.append(out.cpu())))  # noqa: B023
            if inputs:
                stack.enter_context(watch_inputs(denoiser, lambda *call: track.inputs.append(_copied(call))))  # noqa: B023
            images = next(batches, None)
        if images is None:
            return
        track.images = images.cpu()
        yield track


def _zip(exact: list[Tensor], approximate: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(exact, approximate, strict=True))


def _add(sums: dict[str, list[float]], name: str, values: list[float]) -> None:
    sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * len(values)), values, strict=True)]


def _mse(exact: Tensor, approximate: Tensor) -> float:
    return float((exact.double() - approximate.double()).square().mean())


def _cosine(exact: Tensor, approximate: Tensor) -> float:
    """Mean over samples of the cosine between two states."""
    return float(torch.cosine_similarity(exact.double().flatten(1), approximate.double().flatten(1)).mean())
