"""Scores are checked themselves: by hand, on themselves, on noise, and on images that get steadily worse."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from dmq_fx.errors import DmqError
from dmq_fx.quality.features import FeatureExtractor
from dmq_fx.quality.metric_names import parse_metrics
from dmq_fx.quality.moments import Moments, RunningMoments
from dmq_fx.quality.scores import (
    feature_scores,
    frechet_distance,
    frechet_distance_of_moments,
    improved_precision_recall,
    inception_score,
)
from dmq_fx.quality.statistics import FeatureStatistics, collect

Draw = Callable[[int, int], Tensor]


def gaussian(mean: list[float], covariance: list[list[float]]) -> Moments:
    return Moments(100, torch.tensor(mean), torch.tensor(covariance))


def moments_of(rows: Tensor) -> Moments:
    running = RunningMoments()
    running.add(rows)
    return running.moments()


def statistics_of(rows: Tensor) -> FeatureStatistics:
    """Statistics of rows that are features and logits already."""
    moments = moments_of(rows)
    return FeatureStatistics("mnist", "0" * 64, "rows", moments, moments, rows, rows)


def blurred(images: Tensor, radius: float) -> Tensor:
    pictures = [Image.fromarray(image[0].numpy()).filter(ImageFilter.GaussianBlur(radius)) for image in images]
    return torch.from_numpy(np.stack([np.array(picture) for picture in pictures]))[:, None]


def noisy(images: Tensor, deviation: float) -> Tensor:
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images / 255 + deviation * drawn).clamp(0, 1)


@pytest.fixture(scope="module")
def reference(mnist: FeatureExtractor, digits: Tensor) -> FeatureStatistics:
    return collect(mnist, digits.split(100), "digits")


@pytest.fixture(scope="module")
def static(mnist: FeatureExtractor) -> FeatureStatistics:
    images = torch.randint(0, 256, (200, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return collect(mnist, images.split(100), "noise")


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (([0.0], [[1.0]]), ([3.0], [[1.0]]), 9.0),
        (([0.0], [[4.0]]), ([0.0], [[25.0]]), 9.0),  # (2 - 5)^2
        (([1.0, 2.0], [[4.0, 0.0], [0.0, 9.0]]), ([0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]]), 5.0 + 1.0 + 1.0),
        # that do not commute: tr (AB)^(1/2) = (tr AB + 2 (det AB)^(1/2))^(1/2) = (8 + 2 * 3)^(1/2)
        (([0.0, 0.0], [[2.0, 1.0], [1.0, 2.0]]), ([0.0, 1.0], [[3.0, 0.0], [0.0, 1.0]]), 1 + 4 + 4 - 2 * 14**0.5),
        (([0.0, 0.0], [[1.0, 0.0], [0.0, 0.0]]), ([0.0, 0.0], [[0.0, 0.0], [0.0, 1.0]]), 2.0),  # singular
    ],
)
def test_frechet_distance_of_gaussians_by_hand(a: tuple, b: tuple, distance: float) -> None:
    assert frechet_distance_of_moments(gaussian(*a), gaussian(*b)) == pytest.approx(distance, rel=1e-6)
    assert frechet_distance_of_moments(gaussian(*b), gaussian(*a)) == pytest.approx(distance, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(40, 30), (300, 30), (30, 30)])
def test_frechet_distance_with_fewer_images_than_features(n: int, m: int) -> None:
    """tr (C C')^(1/2) is the sum of singular values of X X'^T, of the centred rows: no root of a singular matrix."""
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, 100, generator=generator).double(), 2 * torch.rand(m, 100, generator=generator).double()
    a, b = moments_of(x), moments_of(y)
    roots = torch.linalg.svdvals((x - x.mean(0)) @ (y - y.mean(0)).T).sum() / ((n - 1) * (m - 1)) ** 0.5
    exact = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * roots
    assert frechet_distance_of_moments(a, b) == pytest.approx(float(exact), rel=1e-5)
    assert frechet_distance_of_moments(a, a) == pytest.approx(0, abs=1e-4 * float(a.covariance.trace()))


def test_distance_of_a_reference_to_itself_is_nothing_and_of_noise_is_huge(
    reference: FeatureStatistics, static: FeatureStatistics, mnist: FeatureExtractor, draw: Draw
) -> None:
    again = collect(mnist, [draw(300, 1)], "other digits")
    for spatial in (False, True):
        itself, other, noise = (
            frechet_distance(images, reference, spatial=spatial) for images in (reference, again, static)
        )
        scale = float((reference.spatial if spatial else reference.pooled).covariance.trace())
        assert itself < 1e-4 * scale
        assert itself < other < noise / 5


@pytest.mark.parametrize(("damage", "amounts"), [(blurred, (0.7, 1.4, 3)), (noisy, (0.07, 0.15, 0.3))])
def test_distance_grows_with_blur_and_noise(
    damage: Callable[[Tensor, float], Tensor],
    amounts: tuple[float, ...],
    mnist: FeatureExtractor,
    digits: Tensor,
) -> None:
    exact = collect(mnist, [digits[:120]], "digits")
    worse = [collect(mnist, [damage(digits[:120], amount)], "worse") for amount in amounts]
    for spatial in (False, True):
        distances = [0.0, *(frechet_distance(images, exact, spatial=spatial) for images in worse)]
        assert all(1.2 * less < more for less, more in pairwise(distances)), distances


def test_precision_and_recall_of_parts_of_a_reference(reference: FeatureStatistics, static: FeatureStatistics) -> None:
    """A part of the classes is all precise and covers a part; noise is neither near nor covers."""
    half = replace(reference, features=reference.features[torch.arange(300) % 10 < 5])
    precision, recall = improved_precision_recall(half, reference)
    assert precision == 1 and 0.5 <= recall < 1
    assert improved_precision_recall(reference, half) == (recall, 1)
    assert improved_precision_recall(reference, reference) == (1, 1)
    precision, recall = improved_precision_recall(static, reference)
    assert precision < 0.01 and recall < 0.01


def test_precision_and_recall_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """On a line, with one neighbour: radii are the distances to the next point of the same set."""
    real, fake = (torch.tensor(values)[:, None] for values in ([0.0, 1.0, 2.0, 10.0], [0.5, 2.5, 30.0, 31.0]))
    # radii of real 1, 1, 1, 8: 0.5 and 2.5 are inside. Radii of fake 2, 2, 1, 1: 0, 1 and 2 are inside, 10 is not
    assert improved_precision_recall(statistics_of(fake), statistics_of(real), neighbours=1) == (0.5, 0.75)
    assert capsys.readouterr().out == ""


def test_inception_score_counts_the_classes_that_are_told_apart() -> None:
    sure = torch.eye(4)[torch.arange(400) % 4] * 50
    assert inception_score(statistics_of(sure), splits=1) == (pytest.approx(4, rel=1e-6), 0)
    mean, deviation = inception_score(statistics_of(sure))
    assert 3.8 < mean < 4 and 0 < deviation < 0.2  # classes are not even in a part
    assert inception_score(statistics_of(sure * 0))[0] == pytest.approx(1)
    assert inception_score(statistics_of(torch.eye(4)[torch.zeros(40, dtype=torch.int64)] * 50))[0] == pytest.approx(1)


def test_inception_score_is_the_same_twice_and_leaves_the_global_generator_alone() -> None:
    statistics = statistics_of(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 3)
    state = torch.get_rng_state()
    first = inception_score(statistics)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert inception_score(statistics) == first
    assert inception_score(statistics, generator=torch.Generator().manual_seed(5)) != first


def test_inception_score_falls_with_noise(mnist: FeatureExtractor, digits: Tensor) -> None:
    scores = [inception_score(collect(mnist, [noisy(digits[:200], amount)], "worse"))[0] for amount in (0, 0.3, 0.8)]
    assert scores[0] > 2 and max(scores[1:]) < 1.2  # in noise it sees one class


def test_scores_go_by_the_names_of_their_features(reference: FeatureStatistics, static: FeatureStatistics) -> None:
    metrics = parse_metrics("recall-mnist,fd-mnist,psnr,sfd-mnist,is-mnist,precision-mnist")
    scores = feature_scores(metrics, static, reference)
    precision, recall = improved_precision_recall(static, reference)
    assert scores == {
        "recall-mnist": recall,
        "fd-mnist": frechet_distance(static, reference),
        "sfd-mnist": frechet_distance(static, reference, spatial=True),
        "is-mnist": inception_score(static)[0],
        "precision-mnist": precision,
    }
    assert feature_scores(parse_metrics("is-mnist"), static) == {"is-mnist": scores["is-mnist"]}
    with pytest.raises(DmqError, match="'fid' is taken on features of 'inception', not of 'mnist'"):
        feature_scores(parse_metrics("fid"), static, reference)
    with pytest.raises(DmqError, match=r"'fd-mnist' needs images to compare with\n  hint: name them with --reference"):
        feature_scores(parse_metrics("fd-mnist"), static)


def test_features_of_two_extractors_are_not_compared(reference: FeatureStatistics) -> None:
    for foreign in (replace(reference, extractor="cifar10"), replace(reference, digest="f" * 64)):
        with pytest.raises(DmqError, match=r"digits: .*(cannot be compared|with other weights)"):
            frechet_distance(reference, foreign)
        with pytest.raises(DmqError, match=r"digits: .*(cannot be compared|with other weights)"):
            improved_precision_recall(reference, foreign)


def test_scores_that_cannot_be_computed(reference: FeatureStatistics) -> None:
    few = replace(reference, features=reference.features[:4], logits=reference.logits[:19])
    with pytest.raises(DmqError, match="precision and recall need 5 images or more, and received 4"):
        improved_precision_recall(few, reference)
    with pytest.raises(DmqError, match="an inception score in 10 parts needs 20 images or more, and received 19"):
        inception_score(few)
    with pytest.raises(DmqError, match="cannot compare moments of 1 and 2 features"):
        frechet_distance_of_moments(gaussian([0.0], [[1.0]]), gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]))
    with pytest.raises(DmqError, match="not finite, and have no distance"):
        frechet_distance_of_moments(gaussian([torch.nan], [[1.0]]), gaussian([0.0], [[1.0]]))
    with pytest.raises(DmqError, match="not finite, and have no inception score"):
        inception_score(replace(reference, logits=reference.logits * torch.nan))
    with pytest.raises(DmqError, match="not finite, and have no neighbours"):
        improved_precision_recall(reference, replace(reference, features=reference.features * torch.nan))


def test_a_missing_library_is_named_with_the_extra(
    reference: FeatureStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prdc", None)
    message = r"precision and recall needs prdc, which is not installed\n  hint: pip install 'dmq-fx\[eval\]'"
    with pytest.raises(DmqError, match=message):
        improved_precision_recall(reference, reference)
