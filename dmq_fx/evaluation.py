"""Sample and evaluate an artifact beside the full-precision model that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmq_fx.artifact.folder import Opened, open_artifact
from dmq_fx.errors import ModelError
from dmq_fx.loading import load_opened
from dmq_fx.metrics import Evaluation, compare
from dmq_fx.models import LoadedModel, fingerprint, load_model
from dmq_fx.options import parse_device
from dmq_fx.runtime import QuantizedDenoiser
from dmq_fx.sampling import Sampler, SamplerOptions

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pair:
    """An artifact's quantized denoiser and the full-precision model."""

    opened: Opened
    quantized: QuantizedDenoiser
    reference: LoadedModel


def open_pair(
    artifact: str | Path,
    *,
    model: Any = None,
    backend: str | None = None,
    device: str = "cpu",
    allow_pickle: bool = False,
) -> Pair:
    """Load the artifact and the model that it was compiled from (`model`, or the origin in its manifest).

    Raises ArtifactError, BackendError, and ModelError if the model cannot be found or is another one.
    """
    opened = open_artifact(artifact)
    source = opened.model["origin"] if model is None else model
    if isinstance(source, str) and source.startswith("python:"):
        raise ModelError(
            "this artifact was compiled from a Python object", where=str(artifact), hint="pass it as `model`"
        )
    dtype = getattr(torch, opened.model["compute_dtype"])
    place = parse_device(device)
    try:
        reference = load_model(source, dtype=dtype, device=place, allow_pickle=allow_pickle)
    except ModelError as error:
        if model is not None:
            raise
        hint = f"{error.hint}; or say with --model where it is now" if error.hint else "say with --model where it is"
        raise ModelError(
            f"cannot load the model of this artifact: {error.message}", where=error.where, hint=hint
        ) from error
    if fingerprint(reference.denoiser) != opened.model["fingerprint"]:
        raise ModelError(
            f"the model {reference.origin!r} is not the one that this artifact was compiled from",
            where=str(artifact),
            hint="its weights or its configuration differ",
        )
    skeleton = reference.denoiser if opened.model["origin"].startswith("python:") else None
    return Pair(opened, load_opened(opened, backend=backend, device=device, model=skeleton), reference)


def sample(pair: Pair, samples: int, options: SamplerOptions, progress: Progress) -> Tensor:
    """Images of the quantized model, [samples, channels, height, width] in 0..1."""
    batches = []
    for batch in Sampler(pair.reference, options).run(samples, pair.quantized):
        batches.append(batch.cpu())
        progress("sampling", sum(len(b) for b in batches), samples)
    return torch.cat(batches)


def evaluate(
    artifact: str | Path,
    *,
    model: Any = None,
    samples: int = 64,
    steps: int = 20,
    seed: int = 0,
    batch: int = 32,
    scheduler: str = "pipeline",
    prompts: tuple[str, ...] = (),
    backend: str | None = None,
    device: str = "cpu",
    allow_pickle: bool = False,
    inputs: Mapping[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Error of an artifact against full precision from the same noise: along the trajectory and of the images.

    model: the full-precision model, if it is not where the artifact says. inputs: what a denoiser without a pipeline
    is called with.
    """
    pair = open_pair(artifact, model=model, backend=backend, device=device, allow_pickle=allow_pickle)
    options = SamplerOptions(steps=steps, batch=batch, seed=seed, scheduler=scheduler, prompts=prompts)
    return compare(pair.reference, pair.quantized, options, samples, progress, inputs)[0]
