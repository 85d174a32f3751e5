"""Statistics of images: streamed, stored, and refused where they are of another extractor."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dmq_fx.artifact.tensors import load_metadata, load_tensors, save_tensors
from dmq_fx.errors import ArtifactError, DmqError
from dmq_fx.quality.features import FeatureExtractor
from dmq_fx.quality.statistics import FeatureStatistics, collect, load_statistics, save_statistics

Make = Callable[..., FeatureExtractor]


@pytest.fixture(scope="module")
def statistics(tiny: FeatureExtractor, digits: Tensor) -> FeatureStatistics:
    return collect(tiny, digits[:60].split(16), "digits")


@pytest.fixture
def stored(statistics: FeatureStatistics, tmp_path: Path) -> Path:
    save_statistics(tmp_path / "digits.safetensors", statistics)
    return tmp_path / "digits.safetensors"


def tensors(statistics: FeatureStatistics) -> list[Tensor]:
    moments = (statistics.pooled, statistics.spatial)
    return [statistics.features, statistics.logits, *(t for m in moments for t in (m.mean, m.covariance))]


def test_statistics_are_those_of_all_features_at_once(
    statistics: FeatureStatistics, tiny: FeatureExtractor, digits: Tensor
) -> None:
    features = tiny(digits[:60])
    for moments, rows in ((statistics.pooled, features.pooled), (statistics.spatial, features.spatial)):
        exact = rows.double().numpy()
        np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moments.covariance, np.cov(exact, rowvar=False), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(statistics.features, features.pooled)
    torch.testing.assert_close(statistics.logits, features.logits)
    assert (statistics.count, statistics.extractor, statistics.digest) == (60, "mnist", tiny.digest)


def test_what_is_kept_is_bounded_and_the_moments_are_of_all(tiny: FeatureExtractor, digits: Tensor) -> None:
    shown: list[tuple[str, int, int]] = []
    few = collect(
        tiny,
        digits[:60].split(16),
        "digits",
        total=60,
        keep_features=10,
        keep_logits=20,
        progress=lambda *done: shown.append(done),
    )
    assert (len(few.features), len(few.logits), few.count) == (10, 20, 60)
    assert shown == [("features of digits", done, 60) for done in (16, 32, 48, 60)]


def test_stored_statistics_come_back_to_the_last_bit(
    statistics: FeatureStatistics, stored: Path, tiny: FeatureExtractor
) -> None:
    loaded = load_statistics(stored, tiny)
    assert all(torch.equal(a, b) for a, b in zip(tensors(loaded), tensors(statistics), strict=True))
    assert (loaded.source, loaded.count) == ("digits", 60)
    assert load_metadata(stored) == {
        "format": "dmq-feature-statistics",
        "version": 1,
        "size": None,
        "extractor": "mnist",
        "digest": tiny.digest,
        "source": "digits",
        "count": 60,
    }


def test_the_same_statistics_are_the_same_bytes(statistics: FeatureStatistics, stored: Path, tmp_path: Path) -> None:
    for attempt in range(3):
        path = tmp_path / f"{attempt}.safetensors"
        save_statistics(path, load_statistics(stored) if attempt else statistics)
        assert path.read_bytes() == stored.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_statistics_of_another_extractor_are_refused(stored: Path, make_extractor: Make) -> None:
    message = r"digits.safetensors: statistics of the feature extractor 'mnist' cannot be compared .* of 'cifar10'"
    with pytest.raises(DmqError, match=message):
        load_statistics(stored, make_extractor(0, "cifar10", channels=3))
    with pytest.raises(DmqError, match=r"of the feature extractor 'mnist' with other weights: [0-9a-f]{12}…, and here"):
        load_statistics(stored, make_extractor(1))


def test_files_that_are_no_statistics(stored: Path, tmp_path: Path) -> None:
    metadata, content = load_metadata(stored), load_tensors(stored)
    other = tmp_path / "other.safetensors"
    with pytest.raises(ArtifactError, match="there is no such file"):
        load_statistics(other)
    save_tensors(other, content)
    with pytest.raises(ArtifactError, match="the file holds no feature statistics"):
        load_statistics(other)
    save_tensors(other, content, {**metadata, "version": 2})
    with pytest.raises(ArtifactError, match="feature statistics of format 2, and this version reads 1"):
        load_statistics(other)
    for change in ({"pooled.covariance": torch.zeros(5)}, {"spatial.mean": torch.full((448,), torch.nan)}):
        save_tensors(other, {**content, **change}, metadata)
        with pytest.raises(ArtifactError, match=r"the feature statistics are damaged: (pooled|spatial): "):
            load_statistics(other)
    save_tensors(other, {name: tensor for name, tensor in content.items() if name != "logits"}, metadata)
    with pytest.raises(ArtifactError, match="damaged: 'logits'"):
        load_statistics(other)
    other.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        load_statistics(other)


def test_nothing_is_left_where_statistics_cannot_be_written(statistics: FeatureStatistics, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none/a\.safetensors: cannot write the statistics: "):
        save_statistics(tmp_path / "none" / "a.safetensors", statistics)
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(ArtifactError, match="cannot write the statistics"):
        save_statistics(tmp_path / "taken.safetensors", statistics)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.safetensors"]


def test_one_image_has_no_statistics(tiny: FeatureExtractor, digits: Tensor) -> None:
    with pytest.raises(DmqError, match="need two images or more, and received 1"):
        collect(tiny, [digits[:1]], "one")
