"""Reading `inspection.safetensors` (`dmq_fx.artifact.statistics` wrote it), without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmq_fx.errors import ArtifactError

Array = NDArray[np.float64]
VERSION = 1
HINT = "the artifact was written by another version of dmq; compile the recipe again"


@dataclass(frozen=True)
class Distribution:
    """Of an input or a weight, before or after scaling.

    channels: largest |x| of each channel, or of each run of `run` channels. shares: of the values in equal bins of
    [-limit, limit]. kurtosis: the fourth standardized moment. range: of inputs, [slots, (low, high)]; NaN where none
    was seen.
    """

    channels: Array
    run: int
    peak: float
    shares: Array
    limit: float
    kurtosis: float | None
    range: Array | None = None

    @property
    def centers(self) -> Array:
        """Middle of every bin."""
        bins = len(self.shares)
        return np.asarray(((np.arange(bins) + 0.5) * (2 / bins) - 1) * self.limit, dtype=np.float64)


@dataclass(frozen=True)
class Pair:
    """Before and after scaling; the same object where nothing was scaled."""

    before: Distribution
    after: Distribution

    @property
    def scaled(self) -> bool:
        return self.after is not self.before


@dataclass(frozen=True)
class SiteStatistics:
    """quantized: what the integers of the input reach, [slots, (low, high)], after scaling."""

    input: Pair | None
    weight: Pair | None
    quantized: Array | None


class Statistics:
    """The file's contents, read at once; `of` gives a site's part."""

    def __init__(self, tensors: dict[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
        self._tensors = tensors
        self._metadata = metadata
        for part in ("sites", "input", "weight"):
            metadata[part]

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that anything is known of."""
        known = {*self._metadata["input"]["sites"], *self._metadata["weight"]["sites"]}
        return tuple(name for name in self._metadata["sites"] if name in known)

    @property
    def images(self) -> dict[str, NDArray[np.uint8]]:
        """`full_precision` and `quantized`: [images, channels, height, width]; empty where there are none."""
        prefix = "images."
        return {name.removeprefix(prefix): t for name, t in self._tensors.items() if name.startswith(prefix)}

    def of(self, site: str) -> SiteStatistics:
        """Of a site by name; its parts are None where nothing is known."""
        quantized = None
        if site in self._metadata.get("quantized", ()):
            quantized = self._tensors["input.quantized"][self._metadata["quantized"].index(site)].astype(np.float64)
        return SiteStatistics(self._pair("input", site), self._pair("weight", site), quantized)

    def kurtosis_rank(self, kind: str, site: str) -> tuple[int, int] | None:
        """Place of a site's kurtosis among all sites' (1: the largest) and their number; kind: `input` or `weight`."""
        facts = self._metadata[kind]
        values = {
            name: value for name, value in zip(facts["sites"], facts["kurtosis"], strict=True) if value is not None
        }
        if site not in values:
            return None
        return 1 + sum(value > values[site] for value in values.values()), len(values)

    @cached_property
    def _places(self) -> dict[tuple[str, str], dict[str, tuple[int, int, int]]]:
        """By kind and time: site -> (row, first channel's place, numbers by channel)."""
        bins: dict[tuple[str, str], dict[str, tuple[int, int, int]]] = {}
        for kind in ("input", "weight"):
            facts = self._metadata[kind]
            kept = dict(zip(facts["sites"], map(_kept, facts["channels"]), strict=True))
            for when, names in (("before", facts["sites"]), ("after", facts["scaled"])):
                start, places = 0, {}
                for row, name in enumerate(names):
                    places[name] = (row, start, kept[name])
                    start += kept[name]
                bins[kind, when] = places
        return bins

    def _pair(self, kind: str, site: str) -> Pair | None:
        before = self._distribution(kind, "before", site)
        if before is None:
            return None
        return Pair(before, self._distribution(kind, "after", site) or before)

    def _distribution(self, kind: str, when: str, site: str) -> Distribution | None:
        place = self._places[kind, when].get(site)
        if place is None:
            return None
        row, start, count = place
        facts, part = self._metadata[kind], f"{kind}.{when}"
        read = {name: self._tensors[f"{part}.{name}"] for name in ("channels", "counts", "limit", "peak")}
        peak = float(read["peak"][row])
        ranges = self._tensors.get(f"{part}.range")
        channels = facts["channels"][facts["sites"].index(site)]
        return Distribution(
            channels=read["channels"][start : start + count].astype(np.float64) * peak,
            run=-(-channels // count),
            peak=peak,
            shares=read["counts"][row].astype(np.float64),
            limit=float(read["limit"][row]),
            kurtosis=facts["kurtosis" if when == "before" else "kurtosis_scaled"][row],
            range=None if ranges is None else _finite(ranges[row]),
        )


def read_statistics(path: Path) -> Statistics:
    """The statistics at `path`; raises ArtifactError if they cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get("dmq", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if metadata.get("version") != VERSION:
            raise ArtifactError(f"unknown statistics, version {metadata.get('version')}", where=str(path), hint=HINT)
        return Statistics(tensors, metadata)
    except (OSError, SafetensorError, ValueError, AttributeError, KeyError) as error:
        raise ArtifactError(f"the statistics cannot be read: {error}", where=str(path), hint=HINT) from error


def _kept(channels: int) -> int:
    """Numbers that stand for so many channels; the runs of `dmq_fx.artifact.statistics.runs`."""
    length = -(-channels // 256)
    return -(-channels // length)


def _finite(values: NDArray[Any]) -> Array:
    wide = values.astype(np.float64)
    return np.where(np.isfinite(wide), wide, np.nan)
