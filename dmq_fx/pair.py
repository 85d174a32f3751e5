"""An artifact beside the model that it was made of, and images of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmq_fx.artifact.opened import Opened, open_artifact
from dmq_fx.errors import ModelError
from dmq_fx.loading import load_opened
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
    compile: bool = True,
    allow_pickle: bool = False,
    weights: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> Pair:
    """Load the artifact and the model that it was compiled from (`model`, or the origin in its manifest).

    compile: let the backend make native code, if it does. weights: False leaves the weights of the full-precision
    denoiser unread, for who samples the quantized one alone by the model's own sampler; what its configuration states
    tells it from others then.
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
        reference = load_model(source, dtype=dtype, device=place, allow_pickle=allow_pickle, weights=weights)
    except ModelError as error:
        if model is not None:
            raise
        hint = f"{error.hint}; or say with --model where it is now" if error.hint else "say with --model where it is"
        raise ModelError(
            f"cannot load the model of this artifact: {error.message}", where=error.where, hint=hint
        ) from error
    if not _same(reference, opened):
        raise ModelError(
            f"the model {reference.origin!r} is not the one that this artifact was compiled from",
            where=str(artifact),
            hint="its weights or its configuration differ",
        )
    skeleton = reference.denoiser if opened.model["origin"].startswith("python:") else None
    quantized = load_opened(opened, backend=backend, device=device, model=skeleton, compile=compile, progress=progress)
    return Pair(opened, quantized, reference)


def _same(reference: LoadedModel, opened: Opened) -> bool:
    """Whether the artifact was made of this model; without weights, of one whose configuration states nothing else.

    A key that a configuration leaves out is not compared: what it stands for is known to the class alone.
    """
    if reference.has_weights:
        return fingerprint(reference.denoiser) == opened.model["fingerprint"]
    stated = {"_class_name": reference.class_name, **reference.config}
    return all(key in opened.config and opened.config[key] == value for key, value in stated.items())


def sample(pair: Pair, samples: int, options: SamplerOptions, progress: Progress) -> Tensor:
    """Images of the quantized model, [samples, channels, height, width] in 0..1."""
    batches = []
    for batch in Sampler(pair.reference, options).run(samples, pair.quantized):
        batches.append(batch.cpu())
        progress("sampling", sum(len(b) for b in batches), samples)
    return torch.cat(batches)
