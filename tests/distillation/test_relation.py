"""Time-smoothed relation distillation: mpq-dm T23 and T24."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmq_fx.distillation.relation import FeatureDistance, pixels, relation_distance


def feature(rows: list[list[float]]) -> Tensor:
    """[1, channels, positions]"""
    return torch.tensor(rows).float()[None]


TEACHER = [feature([[1, 0, 1], [0, 1, 1]]), feature([[1, 0, 1], [0, 1, -1]])]
STUDENT = [feature([[1, 0, 1], [0, 1, 0]]), feature([[1, 1, 1], [0, 1, 0]])]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 6, 4, 4)), generator=torch.Generator().manual_seed(seed))


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    found = FeatureDistance("relation", 1, 1, 1024).add(teacher, student)
    assert found is not None
    return found[0]


def test_of_known_features() -> None:
    window = FeatureDistance("relation", 2, 1, 1024)
    assert window.add(TEACHER[0], STUDENT[0]) is None
    found = window.add(TEACHER[1], STUDENT[1])
    assert found is not None and found[1] == 3
    assert float(found[0]) == pytest.approx(0.0537941, abs=1e-6)


def test_the_teacher_comes_first() -> None:
    means = [torch.stack(part).mean(0).transpose(1, 2) for part in (TEACHER, STUDENT)]
    assert float(relation_distance(*means)) == pytest.approx(0.0537941, abs=1e-6)
    assert float(relation_distance(means[1], means[0])) == pytest.approx(0.0567726, abs=1e-6)


def test_is_a_distance_of_relations_alone() -> None:
    exact, found = noise(0), noise(1)
    base = distance(exact, found)
    assert float(base) > 0
    assert float(distance(exact, exact)) == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(distance(exact * 3, found * 0.2), base, rtol=1e-4, atol=1e-5)
    rotation = torch.linalg.qr(noise(2, 6, 6)).Q
    turned = [torch.einsum("dc,bchw->bdhw", rotation, one) for one in (exact, found)]
    torch.testing.assert_close(distance(*turned), base, rtol=1e-3, atol=1e-5)


def test_the_gradient_reaches_the_newest_feature_only() -> None:
    parts = [noise(seed).requires_grad_() for seed in range(4)]
    window = FeatureDistance("relation", 2, 1, 1024)
    assert window.add(parts[0], parts[1]) is None
    found = window.add(parts[2], parts[3])
    assert found is not None
    found[0].backward()
    assert parts[3].grad is not None and bool(parts[3].grad.abs().sum() > 0)
    assert all(part.grad is None for part in parts[:3])


def test_windows_do_not_overlap_nor_outlive_a_trajectory() -> None:
    window = FeatureDistance("relation", 2, 1, 1024)
    given = [window.add(noise(step), noise(step + 10)) is not None for step in range(5)]
    assert given == [False, True, False, True, False]
    window.reset()
    assert window.add(noise(0), noise(1)) is None


def test_squared_distance() -> None:
    window = FeatureDistance("l2", 2, 1, 1024)
    assert window.add(noise(0), noise(1)) is None
    found = window.add(noise(2), noise(3))
    assert found is not None
    wanted = ((noise(1) + noise(3) - noise(0) - noise(2)) / 2).square().sum()
    torch.testing.assert_close(found[0], wanted)


def test_large_features_are_pooled_and_tokens_are_pixels() -> None:
    assert pixels(noise(0, 2, 6, 8, 8), 1, 1024).shape == (2, 64, 6)
    pooled = pixels(noise(0, 2, 6, 8, 8), 1, 16)
    assert pooled.shape == (2, 16, 6)
    torch.testing.assert_close(pooled[0, 0], noise(0, 2, 6, 8, 8)[0, :, :2, :2].mean((1, 2)))
    assert pixels(noise(0, 2, 10, 6), 2, 16).shape == (2, 10, 6)


@pytest.mark.parametrize("shape", [(10,), (8, 8), (2, 64), (3, 8, 8), (7, 5, 9)])
def test_no_more_positions_than_asked_for(shape: tuple[int, ...]) -> None:
    """Tokens, images, videos; a factor that a short axis cannot take falls to the others."""
    assert pixels(noise(0, 2, 6, *shape), 1, 4).shape[1] <= 4
    tokens = pixels(noise(0, 2, 8, 6), 2, 4)
    torch.testing.assert_close(tokens[:, 0], noise(0, 2, 8, 6)[:, :2].mean(1))
