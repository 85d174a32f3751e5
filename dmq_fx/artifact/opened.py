"""An artifact that is open: what it says of itself, without its graph and its tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmq_fx.artifact.container import read_manifest, verify_files
from dmq_fx.artifact.files import CONFIG, FILES, REPORT, SITES
from dmq_fx.artifact.manifest import Manifest
from dmq_fx.errors import ArtifactError
from dmq_fx.models.build import build_denoiser


@dataclass(frozen=True)
class Opened:
    """An artifact whose files were checked: its manifest and its JSON parts."""

    path: Path
    manifest: Manifest
    sites: dict[str, Any]
    config: dict[str, Any]
    report: dict[str, Any]

    @property
    def model(self) -> dict[str, Any]:
        """Where the model came from: origin, component, class_name, fingerprint, compute_dtype."""
        return self.manifest.content["model"]

    @property
    def bytes(self) -> int:
        """Size of the folder's files."""
        return sum(record.size for record in self.manifest.files)


def open_artifact(path: Path | str) -> Opened:
    """Check every file of the artifact and read what it says; raises ArtifactError."""
    path = Path(path)
    manifest = read_manifest(path)
    verify_files(path, manifest)
    for name in FILES:
        if manifest.record(name) is None:
            raise ArtifactError(f"the artifact has no {name}", where=str(path), hint="compile the recipe again")
    return Opened(path, manifest, *(json.loads((path / name).read_text("utf-8")) for name in (SITES, CONFIG, REPORT)))


def build_skeleton(opened: Opened) -> torch.nn.Module:
    """The artifact's model without weights, on the meta device. Raises ModelError if its class is not diffusers'."""
    dtype = getattr(torch, opened.model["compute_dtype"])
    return build_denoiser(opened.model["class_name"], opened.config, dtype=dtype, where=str(opened.path / CONFIG))
