"""Write a compiled program as an artifact, and read one back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dmq_fx.artifact.container import write_artifact
from dmq_fx.artifact.decode import decode_program
from dmq_fx.artifact.encode import encode_sites, encode_tensors
from dmq_fx.artifact.files import CONFIG, LOCK, REPORT, REPORT_HTML, SITES, STATISTICS, TENSORS
from dmq_fx.artifact.manifest import Manifest, canonical_json
from dmq_fx.artifact.opened import Opened, build_skeleton
from dmq_fx.artifact.tensors import opened_tensors, save_tensors
from dmq_fx.errors import ArtifactError
from dmq_fx.models import LoadedModel
from dmq_fx.program import Program
from dmq_fx.roles import find_sites
from dmq_fx.tracing import describe_inputs, graph_fingerprint, rebuild_inputs, trace


def save_program(
    program: Program,
    loaded: LoadedModel,
    *,
    path: Path,
    content: Mapping[str, Any],
    lock: str,
    errors: Mapping[str, dict[str, Any]],
    report: Mapping[str, Any],
    html: str,
    overwrite: bool,
    statistics: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None,
) -> Manifest:
    """Write the artifact; content: what the manifest says of model and recipe. Raises ArtifactError.

    statistics: tensors and metadata of `encode_statistics`; the file is left out without.
    """
    tensors = encode_tensors(program)
    config = {"_class_name": loaded.class_name, **loaded.config}
    return write_artifact(
        path,
        {
            TENSORS: lambda file: save_tensors(file, tensors),
            SITES: canonical_json(encode_sites(program, dict(errors))) + "\n",
            CONFIG: json.dumps(config, indent=2, sort_keys=True) + "\n",
            LOCK: lock,
            REPORT: canonical_json(report) + "\n",
            REPORT_HTML: html,
            **({STATISTICS: lambda file: save_tensors(file, *statistics)} if statistics is not None else {}),
        },
        {
            **content,
            "graph": graph_fingerprint(program.original.graph_module),
            "inputs": describe_inputs(program.traced),
            "dynamic_size": program.traced.dynamic_size,
        },
        overwrite=overwrite,
    )


def load_program(opened: Opened, denoiser: torch.nn.Module | None = None) -> tuple[Program, torch.nn.Module]:
    """Trace the artifact's model again and replay its rewrites.

    denoiser: the original module, needed where its class is not one of diffusers'. Returns the program and the
    module that was traced (on the meta device if it was built here). Raises ArtifactError.
    """
    if denoiser is None:
        denoiser = build_skeleton(opened)
    inputs = rebuild_inputs(opened.manifest.content["inputs"], device_of(denoiser))
    traced = trace(denoiser, inputs, dynamic_size=opened.manifest.content["dynamic_size"])
    if graph_fingerprint(traced.graph_module) != opened.manifest.content["graph"]:
        raise ArtifactError(
            "the model's graph is not the one that was compiled",
            where=str(opened.path),
            hint=f"it was compiled with {_versions(opened)}; install those, or compile the recipe again",
        )
    with opened_tensors(opened.path / TENSORS) as tensors:
        program = decode_program(traced, find_sites(traced), opened.sites, tensors, str(opened.path))
    if len(opened.report["timesteps"]) == len(program.timesteps):  # not among the tensors where all ranges are static
        program.timesteps = torch.tensor(opened.report["timesteps"], dtype=torch.float32)
    return program, denoiser


def device_of(module: torch.nn.Module) -> torch.device:
    """Where the module's first parameter is; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _versions(opened: Opened) -> str:
    return ", ".join(f"{name} {version}" for name, version in opened.manifest.content["environment"].items())
