"""`dmq_fx.load`: an artifact as a module that stands where the original denoiser stood."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dmq_fx.artifact.folder import Opened, load_program, open_artifact
from dmq_fx.backend_api import BACKENDS
from dmq_fx.errors import BackendError
from dmq_fx.runtime import QuantizedDenoiser


def load(
    path: str | Path,
    *,
    backend: str | None = None,
    device: str | torch.device = "cpu",
    model: nn.Module | None = None,
) -> QuantizedDenoiser:
    """Load the artifact at `path`; the result is called like the original denoiser (`pipe.unet = load("out")`).

    backend: lowering target; the recipe's own if left out. model: the original module, needed only if its class
    is not one of diffusers'. Raises ArtifactError for what is missing, damaged or newer, BackendError for a
    backend that is unknown or cannot run here.
    """
    return load_opened(open_artifact(path), backend=backend, device=device, model=model)


def load_opened(
    opened: Opened,
    *,
    backend: str | None = None,
    device: str | torch.device = "cpu",
    model: nn.Module | None = None,
) -> QuantizedDenoiser:
    """`load` for an artifact that is open already."""
    name = backend or opened.manifest.content["backend"]
    target = BACKENDS.get(name, error=BackendError)
    program, skeleton = load_program(opened, model)
    lowered = target.lower(program.graph_module, torch.device(device))
    info = {
        "path": str(opened.path),
        "digest": opened.manifest.digest,
        "recipe": opened.manifest.content["recipe"],
        "compute_dtype": getattr(torch, opened.model["compute_dtype"]),
        "backend": name,
    }
    denoiser = QuantizedDenoiser(lowered, program.traced, skeleton, info).eval().requires_grad_(False)
    return denoiser.to(device)
