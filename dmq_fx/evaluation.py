"""Evaluate an artifact beside the full-precision model that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dmq_fx.errors import DmqError
from dmq_fx.metrics import Evaluation, compare
from dmq_fx.pair import Pair, open_pair
from dmq_fx.quality.measure import QualityOptions, check, measure_quality
from dmq_fx.quality.metric_names import parse_metrics
from dmq_fx.sampling import SamplerOptions, check_conditioning
from dmq_fx.sampling.schedulers import check_scheduler

COMPARED = 64
"""Images that the error along the trajectory is taken on, beside metrics of many."""

COMPILED = f"torch.compile of torch {torch.__version__}"
"""Said of images that came from a compiled model."""

Progress = Callable[[str, int, int], None]


def evaluate(
    artifact: str | Path,
    *,
    model: Any = None,
    samples: int = 64,
    steps: int = 20,
    seed: int = 10_000,
    batch: int = 32,
    scheduler: str = "pipeline",
    prompts: tuple[str, ...] = (),
    guidance_scale: float | None = None,
    metrics: str | Iterable[str] = (),
    reference: str | Path | None = None,
    subset: str | None = None,
    repeats: int = 1,
    full_precision: bool = False,
    feature_extractor: str | Path | None = None,
    clip_model: str | None = None,
    samples_dir: str | Path | None = None,
    backend: str | None = None,
    device: str = "cpu",
    compiled: bool | None = None,
    allow_pickle: bool = False,
    inputs: Mapping[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Error of an artifact against full precision from the same noise, and metrics of its images.

    model: the full-precision model, if it is not where the artifact says. inputs: what a denoiser without a pipeline
    is called with. samples: images; beside metrics, the error is that of the first 64 of them. prompts: of a
    text-to-image model, used in turn.
    metrics: names such as `fid` or `fd-mnist` (`dmq_fx.quality.metric_names`), which need the extra `eval`. reference:
    image folder, archive, stored statistics (.safetensors) or `full-precision`; subset: a folder inside. repeats: sets
    of images, of seeds that follow each other. full_precision: score that model too. feature_extractor: file of
    Inception's weights. clip_model: folder or hub id. samples_dir: where images are kept, and continued from.
    compiled: True: images for metrics come from fake quantization as torch.compile makes it, about twice as fast on a
    CPU after minutes at the start (sums are rounded in another order then, and images that are kept know it). False: a
    backend that makes native code does without. None: as the backend does.
    Raises DmqError for what cannot work, before the model is loaded where it can be known then.
    """
    _check_numbers(samples=samples, steps=steps, batch=batch, repeats=repeats)
    check_scheduler(scheduler)
    if isinstance(prompts, str):
        raise DmqError(f"prompts are a list of texts, and received {prompts!r}", where="prompts", hint="[prompt]")
    options = SamplerOptions(
        steps=steps, batch=batch, seed=seed, scheduler=scheduler, prompts=tuple(prompts), guidance_scale=guidance_scale
    )
    wanted = QualityOptions(
        metrics=parse_metrics(metrics) if metrics else (),
        samples=samples,
        repeats=repeats,
        reference=reference,
        subset=subset,
        feature_extractor=feature_extractor,
        clip_model=clip_model,
        samples_dir=samples_dir,
        full_precision=full_precision,
    )
    if wanted.metrics:
        check(wanted, options)
    else:
        _check_nothing_for_metrics(wanted)
    pair = open_pair(
        artifact,
        model=model,
        backend=backend,
        device=device,
        compile=compiled is not False,
        allow_pickle=allow_pickle,
        progress=progress,
    )
    check_conditioning(pair.reference, options)
    quality = None
    if wanted.metrics:
        models, identities = _images_from(pair, bool(compiled) and pair.quantized.info["backend"] == "fake_quant")
        quality = measure_quality(models.reference, models.quantized, identities, options, wanted, progress)
    compared = min(samples, COMPARED) if wanted.metrics else samples
    found = compare(pair.reference, pair.quantized, options, compared, progress, inputs, same_input=True)[0]
    return replace(found, quality=quality)


def _check_numbers(**numbers: int) -> None:
    """Raise DmqError for a number of images, steps or sets that is none."""
    for name, value in numbers.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:  # numpy's integers too
            message = f"{name} is {value!r}, and has to be a whole number, 1 or more"
            raise DmqError(message, where=f"--{name}")


def _check_nothing_for_metrics(wanted: QualityOptions) -> None:
    """Raise DmqError for an option that says something of metrics, where none is asked for."""
    given = {
        "--reference": ("a reference is", wanted.reference is not None),
        "--subset": ("a subset of the reference is", wanted.subset is not None),
        "--feature-extractor": ("a file of Inception's weights is", wanted.feature_extractor is not None),
        "--clip-model": ("a CLIP model is", wanted.clip_model is not None),
        "--repeats": ("repeats are", wanted.repeats != 1),
        "--full-precision": ("full precision's scores are", wanted.full_precision),
        "--samples-dir": ("kept images are", wanted.samples_dir is not None),
    }
    for option, (what, is_given) in given.items():
        if is_given:
            raise DmqError(f"{what} for metrics, and none is asked for", where=option, hint="name some: --metrics")


def _images_from(pair: Pair, compiled: bool) -> tuple[Pair, tuple[dict[str, str], dict[str, str]]]:
    """The models that images for metrics are drawn from; what decides them, beside the sampler, for both models."""
    exact = {"model": pair.opened.model["fingerprint"], "compute_dtype": pair.opened.model["compute_dtype"]}
    identity = {**exact, "artifact": pair.opened.manifest.digest, "backend": str(pair.quantized.info["backend"])}
    if compiled:
        quantized = pair.quantized.behind_same_signature(compile_module(pair.quantized.lowered))
        pair, identity = replace(pair, quantized=quantized), {**identity, "compiled": COMPILED}
    return pair, (exact, identity)


def compile_module(module: nn.Module) -> nn.Module:
    """`module` through torch.compile: about half the time a call on a CPU, after minutes at the first."""
    return cast(nn.Module, torch.compile(module))
