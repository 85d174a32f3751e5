"""What is known of a set of images for every score: moments of its features, and an even choice of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmq_fx.artifact.container import sibling
from dmq_fx.artifact.tensors import load_metadata, load_tensors, save_tensors
from dmq_fx.errors import ArtifactError, DmqError
from dmq_fx.quality.features import FeatureExtractor
from dmq_fx.quality.moments import KeptRows, Moments, RunningMoments

FORMAT = "dmq-feature-statistics"
VERSION = 1
KEEP_FEATURES = 10_000
"""Images that precision and recall are taken on: what the literature takes, and distances among them fit in memory."""

KEEP_LOGITS = 50_000
"""Images that the inception score is taken on, at most: the published scores' number."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of `count` images under one extractor.

    digest: of the extractor's weights. source: what the images are, without a machine's paths. size: (height, width)
    that they were brought to before the extractor got them; None for their own. pooled, spatial: moments of all images.
    features: [at most 10,000, d], logits: [at most 50,000, k]: those of an even choice of the images, in float32.
    """

    extractor: str
    digest: str
    source: str
    pooled: Moments
    spatial: Moments
    features: Tensor
    logits: Tensor
    size: tuple[int, int] | None = None

    @property
    def count(self) -> int:
        return self.pooled.count


class StatisticsCollector:
    """Statistics of images that are added batch by batch; memory is bounded by the two numbers of rows to keep."""

    def __init__(
        self, extractor: FeatureExtractor, *, keep_features: int = KEEP_FEATURES, keep_logits: int = KEEP_LOGITS
    ) -> None:
        self.extractor = extractor
        self._pooled, self._spatial = RunningMoments(), RunningMoments()
        self._features, self._logits = KeptRows(keep_features), KeptRows(keep_logits)

    @property
    def count(self) -> int:
        """Images so far."""
        return self._pooled.count

    def add(self, images: Tensor) -> None:
        """images: [n, channels, height, width], uint8 or floats in 0..1; raises what the extractor raises."""
        features = self.extractor(images)
        self._pooled.add(features.pooled)
        self._spatial.add(features.spatial)
        self._features.add(features.pooled)
        self._logits.add(features.logits)

    def statistics(self, source: str) -> FeatureStatistics:
        """Statistics of the images so far; raises DmqError for fewer than two."""
        return FeatureStatistics(
            extractor=self.extractor.name,
            digest=self.extractor.digest,
            source=source,
            pooled=self._pooled.moments(),
            spatial=self._spatial.moments(),
            features=self._features.rows(),
            logits=self._logits.rows(),
        )


def collect(
    extractor: FeatureExtractor,
    batches: Iterable[Tensor],
    source: str,
    *,
    total: int = 0,
    keep_features: int = KEEP_FEATURES,
    keep_logits: int = KEEP_LOGITS,
    progress: Progress = lambda what, done, total: None,
) -> FeatureStatistics:
    """Statistics of the images of all batches. total: how many there are, for the progress; 0 where nobody knows."""
    collector = StatisticsCollector(extractor, keep_features=keep_features, keep_logits=keep_logits)
    for images in batches:
        collector.add(images)
        progress(f"features of {source}", collector.count, total)
    return collector.statistics(source)


def check_same_features(ours: FeatureStatistics | FeatureExtractor, theirs: FeatureStatistics, *, where: str) -> None:
    """Raise DmqError unless both are features of one extractor with the same weights."""
    name = ours.extractor if isinstance(ours, FeatureStatistics) else ours.name
    if theirs.extractor != name:
        raise DmqError(
            f"statistics of the feature extractor {theirs.extractor!r} cannot be compared with features of {name!r}",
            where=where,
            hint=f"give the images themselves, or statistics that were made with {name!r}",
        )
    if theirs.digest != ours.digest:
        raise DmqError(
            f"the statistics are of the feature extractor {name!r} with other weights: {theirs.digest[:12]}…, and here "
            f"they are {ours.digest[:12]}…",
            where=where,
            hint="give the images themselves, or make the statistics again with these weights",
        )


def save_statistics(path: str | Path, statistics: FeatureStatistics) -> None:
    """Write one safetensors file, as a whole or not at all; the same statistics give the same bytes.

    Covariances are stored as their upper triangles. Raises ArtifactError where it cannot be written.
    """
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "extractor": statistics.extractor,
        "digest": statistics.digest,
        "source": statistics.source,
        "count": statistics.count,
        "size": None if statistics.size is None else list(statistics.size),
    }
    tensors = {"features": statistics.features, "logits": statistics.logits}
    for name in ("pooled", "spatial"):
        moments: Moments = getattr(statistics, name)
        rows, columns = torch.triu_indices(len(moments.mean), len(moments.mean))
        tensors |= {f"{name}.mean": moments.mean, f"{name}.covariance": moments.covariance[rows, columns]}
    partial = sibling(path, "partial")
    try:
        save_tensors(partial, tensors, metadata)
        partial.replace(path)
    except (OSError, ArtifactError) as error:
        reason = error.message if isinstance(error, ArtifactError) else str(error)
        raise ArtifactError(f"cannot write the statistics: {reason}", where=str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def check_statistics_path(path: str | Path) -> None:
    """Raise DmqError where statistics cannot be written; worth asking before minutes of reading images."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.parent.is_dir() or path.is_dir():
        hint = "use a path ending in .safetensors, in a folder that exists"
        raise DmqError("statistics cannot be written there", where=str(path), hint=hint)


def load_statistics(path: str | Path, extractor: FeatureExtractor | None = None) -> FeatureStatistics:
    """The statistics in a file of `save_statistics`.

    Raises ArtifactError for a file that is none or is damaged, and DmqError for statistics that are not of `extractor`.
    """
    path = Path(path)
    metadata = load_metadata(path)
    if metadata.get("format") != FORMAT:
        hint = "statistics are written by `dmq`; of images, give their folder or archive"
        raise ArtifactError("the file holds no feature statistics", where=str(path), hint=hint)
    if metadata.get("version") != VERSION:
        message = f"feature statistics of format {metadata.get('version')!r}, and this version reads {VERSION}"
        raise ArtifactError(message, where=str(path), hint="make them again from the images")
    try:
        statistics = _parse(metadata, load_tensors(path))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        hint = "make them again from the images"
        raise ArtifactError(f"the feature statistics are damaged: {error}", where=str(path), hint=hint) from error
    if extractor is not None:
        check_same_features(extractor, statistics, where=str(path))
    return statistics


def _parse(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FeatureStatistics:
    count = int(metadata["count"])
    features, logits = tensors["features"], tensors["logits"]
    pooled, spatial = (_moments(count, tensors, name) for name in ("pooled", "spatial"))
    if features.dim() != 2 or logits.dim() != 2 or features.shape[1] != len(pooled.mean):
        raise ValueError(f"features {list(features.shape)}, logits {list(logits.shape)}, mean {len(pooled.mean)}")
    texts = {key: str(metadata[key]) for key in ("extractor", "digest", "source")}
    size = None if metadata["size"] is None else (int(metadata["size"][0]), int(metadata["size"][1]))
    return FeatureStatistics(**texts, pooled=pooled, spatial=spatial, features=features, logits=logits, size=size)


def _moments(count: int, tensors: Mapping[str, Tensor], name: str) -> Moments:
    mean, triangle = tensors[f"{name}.mean"].double(), tensors[f"{name}.covariance"].double()
    rows, columns = torch.triu_indices(len(mean), len(mean))
    if triangle.shape != rows.shape or not (mean.isfinite().all() and triangle.isfinite().all()):
        raise ValueError(f"{name}: {len(triangle)} covariances of {len(mean)} features, or some are not finite")
    covariance = mean.new_empty(len(mean), len(mean))
    covariance[rows, columns] = triangle
    covariance[columns, rows] = triangle
    return Moments(count, mean, covariance)
