"""An artifact as inspection sees it: what its small files say. Weights are not read, and torch is not imported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dmq_fx.artifact.container import read_manifest, verify_files
from dmq_fx.artifact.files import LOCK, REPORT, SITES, STATISTICS
from dmq_fx.artifact.manifest import Manifest
from dmq_fx.errors import ArtifactError, did_you_mean
from dmq_fx.inspection.rows import artifact_rows
from dmq_fx.inspection.statistics import Statistics, read_statistics

READ = (SITES, REPORT, LOCK)
"""Files that every inspection reads."""

NO_STATISTICS = "no distributions and images: compiled with --no-report, or by an older dmq"
NO_ERRORS = "no errors by timestep: the recipe needed no calibration"
NO_TRAJECTORY = "no trajectory of states: compiled with --no-report, or by an older dmq"
NO_FOLDS = "no γ, shifts and zero points by site: compiled by an older dmq"


@dataclass(frozen=True)
class Inspected:
    """An artifact's manifest, table of sites and report. `rows`: its sites, see `dmq_fx.inspection.rows`."""

    path: Path
    manifest: Manifest
    table: dict[str, Any]
    report: dict[str, Any]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return artifact_rows(self.table)

    @cached_property
    def statistics(self) -> Statistics | None:
        """Distributions of every site and images; None if the compile kept none. Raises ArtifactError."""
        if self.manifest.record(STATISTICS) is None:
            return None
        verify_files(self.path, self.manifest, [STATISTICS])
        return read_statistics(self.path / STATISTICS)

    @property
    def recipe(self) -> dict[str, Any]:
        """name, version, digest."""
        return self.manifest.content["recipe"]

    @property
    def model(self) -> dict[str, Any]:
        return self.manifest.content["model"]

    @property
    def slots(self) -> int:
        """Timesteps that may have ranges of their own."""
        return int(self.table["slots"])

    @property
    def timesteps(self) -> list[float]:
        return self.report["timesteps"]

    @property
    def errors(self) -> dict[str, Any]:
        """Errors by site and step, as `report.json` has them; empty where none were measured."""
        return self.report.get("errors") or {}

    @property
    def bytes(self) -> int:
        """Size of the folder's files."""
        return sum(record.size for record in self.manifest.files)

    @property
    def lock_path(self) -> Path:
        return self.path / LOCK

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """What this artifact cannot show, and why."""
        found = []
        if self.manifest.record(STATISTICS) is None:
            found.append(NO_STATISTICS)
        if not self.errors:
            found.append(NO_ERRORS)
        elif "trajectory_mse" not in self.errors:
            found.append(NO_TRAJECTORY)
        quantized = [row for row in self.rows if row["activation"] and not row["activation"]["symmetric"]]
        if quantized and not any(row["folds"] for row in quantized):
            found.append(NO_FOLDS)
        return tuple(found)

    def row(self, name: str) -> dict[str, Any]:
        """The site called `name`; raises ArtifactError with the closest names."""
        found = next((row for row in self.rows if row["name"] == name), None)
        if found is None:
            names = [row["name"] for row in self.rows]
            hint = did_you_mean(name, names) or "`dmq inspect` lists the sites"
            raise ArtifactError(f"no site is called {name!r}", where=str(self.path), hint=hint)
        return found


def inspect_artifact(path: Path | str, *, verify: Sequence[str] | None = READ) -> Inspected:
    """Open an artifact for inspection; raises ArtifactError.

    verify: files whose hashes are checked; by default those that are read. None for all, weights too.
    """
    path = Path(path)
    manifest = read_manifest(path)
    verify_files(path, manifest, verify)
    table, report = (json.loads((path / name).read_text("utf-8")) for name in (SITES, REPORT))
    return Inspected(path, manifest, table, report)
