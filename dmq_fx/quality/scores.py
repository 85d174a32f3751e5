"""Scores of a set of images against a reference, from the features of both; computed by torchmetrics and prdc.

The computations are the literature's; their names depend on the features (`metric_names.py`).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable
from contextlib import redirect_stdout

import torch
from torch import Tensor, nn

from dmq_fx.errors import DmqError
from dmq_fx.quality.libraries import library
from dmq_fx.quality.metric_names import Metric
from dmq_fx.quality.moments import Moments
from dmq_fx.quality.statistics import FeatureStatistics, check_same_features

NEIGHBOURS = 3
SPLITS = 10


def feature_scores(
    metrics: Iterable[Metric], images: FeatureStatistics, reference: FeatureStatistics | None = None
) -> dict[str, float]:
    """Each metric of features by its name, of `images` against `reference`; metrics of pixels are passed over.

    All metrics are of one extractor, that of both statistics. Raises DmqError otherwise, where a metric needs a
    reference and there is none, and where a score cannot be computed.
    """
    scores: dict[str, float] = {}
    precision_recall: tuple[float, float] | None = None
    for metric in metrics:
        if metric.extractor is None:
            continue
        if metric.extractor != images.extractor:
            message = f"{metric.name!r} is taken on features of {metric.extractor!r}, not of {images.extractor!r}"
            raise DmqError(message, where=images.source)
        if metric.kind == "inception_score":
            scores[metric.name] = inception_score(images)[0]
            continue
        if reference is None:
            raise DmqError(f"{metric.name!r} needs images to compare with", hint="name them with --reference")
        if metric.kind in ("precision", "recall"):
            precision_recall = precision_recall or improved_precision_recall(images, reference)
            scores[metric.name] = precision_recall[0 if metric.kind == "precision" else 1]
        else:
            spatial = metric.kind == "spatial_frechet_distance"
            scores[metric.name] = frechet_distance(images, reference, spatial=spatial)
    return scores


def frechet_distance(images: FeatureStatistics, reference: FeatureStatistics, *, spatial: bool = False) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the pooled or the spatial features.

    FID is the one of Inception's pooled features (arXiv:1706.08500), sFID of its spatial ones (arXiv:2103.03841).
    Raises DmqError for statistics of two extractors.
    """
    check_same_features(images, reference, where=reference.source)
    if spatial:
        return frechet_distance_of_moments(images.spatial, reference.spatial)
    return frechet_distance_of_moments(images.pooled, reference.pooled)


def frechet_distance_of_moments(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance of two Gaussians, by torchmetrics in float64.

    With fewer images than features a covariance is singular, which changes nothing in the formula. Raises DmqError
    for moments of different widths, or that are not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise DmqError(f"cannot compare moments of {len(a.mean)} and {len(b.mean)} features")
    for moments in (a, b):
        if not (moments.mean.isfinite().all() and moments.covariance.isfinite().all()):
            raise DmqError("the features of some images are not finite, and have no distance")
    compute = library("torchmetrics.image.fid", needed_for="a Fréchet distance")._compute_fid
    distance = float(compute(a.mean.double(), a.covariance.double(), b.mean.double(), b.covariance.double()))
    return max(distance, 0.0)  # of equal moments, rounding leaves some -1e-12


def inception_score(
    images: FeatureStatistics, *, splits: int = SPLITS, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """exp(E KL(p(y|x) | p(y))) of the kept logits (arXiv:1606.03498): mean and deviation over `splits` parts.

    generator: shuffles the images before they are split; without one, always in the same way. Raises DmqError for
    fewer than two images a part.
    """
    logits = images.logits.double()
    if len(logits) < 2 * splits:
        message = f"an inception score in {splits} parts needs {2 * splits} images or more, and received {len(logits)}"
        raise DmqError(message, where=images.source)
    module = library("torchmetrics.image.inception", needed_for="an inception score")
    state = (generator or torch.Generator().manual_seed(0)).get_state()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps all logits, and that one part has no deviation
        torch.set_rng_state(state)  # it shuffles by the global generator
        metric = module.InceptionScore(feature=nn.Identity(), splits=splits)
        metric.update(logits)
        mean, deviation = (float(value) for value in metric.compute())
    if not math.isfinite(mean):
        raise DmqError("the logits of some images are not finite, and have no inception score", where=images.source)
    return mean, deviation if splits > 1 else 0.0


def improved_precision_recall(
    images: FeatureStatistics, reference: FeatureStatistics, *, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Share of images near the reference, and of the reference near images (arXiv:1904.06991), of the kept features.

    Near means closer to one of them than its `neighbours`-th nearest neighbour among its own. Raises DmqError for
    statistics of two extractors, or of too few images to have so many neighbours.
    """
    check_same_features(images, reference, where=reference.source)
    for statistics in (images, reference):
        if len(statistics.features) < neighbours + 2:
            received = len(statistics.features)
            message = f"precision and recall need {neighbours + 2} images or more, and received {received}"
            raise DmqError(message, where=statistics.source)
    module = library("prdc", needed_for="precision and recall")
    real, fake = (_finite(statistics).numpy() for statistics in (reference, images))
    with redirect_stdout(io.StringIO()):  # it prints the numbers of images
        result = module.compute_prdc(real_features=real, fake_features=fake, nearest_k=neighbours)
    return float(result["precision"]), float(result["recall"])


def _finite(statistics: FeatureStatistics) -> Tensor:
    if not statistics.features.isfinite().all():
        raise DmqError("the features of some images are not finite, and have no neighbours", where=statistics.source)
    return statistics.features
