"""`dmq_fx.load`: an artifact as a module that stands where the original denoiser stood."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from dmq_fx.artifact.opened import Opened, build_skeleton, open_artifact
from dmq_fx.backend_api import BACKENDS, Backend, LoweringOptions, Progress
from dmq_fx.environment import package_versions
from dmq_fx.errors import BackendError
from dmq_fx.heap import give_back
from dmq_fx.runtime import Original, QuantizedDenoiser
from dmq_fx.tracing.call import rebuild_call

if TYPE_CHECKING:
    from dmq_fx.program import Program
    from dmq_fx.tracing import TracedModel


def load_program(opened: Opened, model: nn.Module | None) -> tuple[Program, nn.Module]:
    """`dmq_fx.artifact.folder.load_program`, imported when a graph is read: a kept lowering needs none."""
    from dmq_fx.artifact.folder import load_program as read

    return read(opened, model)


def load(
    path: str | Path,
    *,
    backend: str | None = None,
    device: str | torch.device = "cpu",
    model: nn.Module | None = None,
    compile: bool = True,
    dtype: torch.dtype | None = None,
    progress: Progress = lambda what, done, total: None,
) -> QuantizedDenoiser:
    """Load the artifact at `path`; the result is called like the original denoiser (`pipe.unet = load("out")`).

    backend: lowering target; the recipe's own if left out. model: the original module, needed only if its class
    is not one of diffusers'. compile: let a backend make native code, which is kept in the user's cache folder for
    the next time. dtype: what a backend computes in between integer kernels, if it leaves a choice.
    progress: called with (what, done, total). Raises ArtifactError for what is missing, damaged or newer, BackendError
    for a backend that is unknown or cannot run here.
    """
    return load_opened(
        open_artifact(path),
        backend=backend,
        device=device,
        model=model,
        compile=compile,
        dtype=dtype,
        progress=progress,
    )


def load_opened(
    opened: Opened,
    *,
    backend: str | None = None,
    device: str | torch.device = "cpu",
    model: nn.Module | None = None,
    compile: bool = True,
    dtype: torch.dtype | None = None,
    progress: Progress = lambda what, done, total: None,
) -> QuantizedDenoiser:
    """`load` for an artifact that is open already."""
    name = backend or opened.manifest.content["backend"]
    target = BACKENDS.get(name, error=BackendError)
    options = LoweringOptions(torch.device(device), opened.manifest.digest, compile, dtype, progress)
    kept = target.kept(options, lambda: load_program(opened, model)[0])
    if kept is not None:
        lowered, traced = kept.lowered, rebuild_call(kept.call)
        original = _original(opened) if model is None else Original(lambda: model)
    else:
        lowered, traced, skeleton = _lowered(opened, model, target, options)
        original = Original(lambda: skeleton)
        gc.collect()  # graphs refer to themselves
        give_back()
    info = {
        "path": str(opened.path),
        "digest": opened.manifest.digest,
        "recipe": opened.manifest.content["recipe"],
        "compute_dtype": getattr(torch, opened.model["compute_dtype"]),
        "backend": name,
        "reload": None
        if model is not None
        else {"path": str(opened.path.resolve()), "backend": name, **options.reload},
    }
    denoiser = QuantizedDenoiser(lowered, traced, original, info).eval().requires_grad_(False)
    return denoiser.to(device)


def _original(opened: Opened) -> Original:
    """diffusers' class is imported when a pipeline asks for more than the configuration.

    At once where that may fail or say more: for a class that diffusers does not have, and for another release of it.
    Raises ModelError as `build_skeleton`.
    """
    import diffusers

    release = opened.manifest.content["environment"].get("diffusers")
    if opened.model["class_name"] not in dir(diffusers) or release != package_versions()["diffusers"]:
        skeleton = build_skeleton(opened)
        return Original(lambda: skeleton)
    config = {key: value for key, value in opened.config.items() if key != "_class_name"}
    return Original(lambda: build_skeleton(opened), config)


def _lowered(
    opened: Opened, model: nn.Module | None, target: Backend, options: LoweringOptions
) -> tuple[nn.Module, TracedModel, nn.Module]:
    """The lowered module, how calls map to its inputs, and the original without weights; the program is let go."""
    program, skeleton = load_program(opened, model)
    return target.lower(program, options), program.traced, skeleton
