"""Moments and choices of streamed rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmq_fx.errors import DmqError
from dmq_fx.quality.moments import KeptRows, Moments, RunningMoments


def stream(rows: torch.Tensor, sizes: list[int]) -> Moments:
    running = RunningMoments()
    for part in rows.split(sizes):
        running.add(part)
    return running.moments()


@given(st.lists(st.integers(1, 7), min_size=2, max_size=12), st.integers(1, 5), st.floats(-1e4, 1e4))
@settings(deadline=None)
def test_moments_of_a_stream_are_numpys_of_all_rows(sizes: list[int], width: int, offset: float) -> None:
    rows = torch.randn(sum(sizes), width, generator=torch.Generator().manual_seed(width)) + offset
    moments = stream(rows, sizes)
    exact = rows.double().numpy()
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(exact, rowvar=False).reshape(width, width), atol=1e-9)
    assert torch.equal(moments.covariance, moments.covariance.T)


def test_a_mean_far_above_the_deviation_costs_no_digits() -> None:
    rows = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, far = stream(rows, [100] * 10), stream(rows + 1e7, [100] * 10)
    torch.testing.assert_close(far.covariance, near.covariance, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_rows_have_no_covariance(count: int) -> None:
    running = RunningMoments()
    for row in torch.ones(count, 3):
        running.add(row[None])
    with pytest.raises(DmqError, match=f"need two images or more, and received {count}"):
        running.moments()


def kept(count: int, limit: int, batch: int) -> list[int]:
    rows = KeptRows(limit)
    for part in torch.arange(count).float()[:, None].split(batch):
        rows.add(part)
    return [int(value) for value in rows.rows().flatten()]


@given(st.integers(1, 60), st.integers(0, 70), st.integers(1, 20))
def test_kept_rows_are_the_same_whatever_the_batches_in_their_order(count: int, limit: int, batch: int) -> None:
    rows = kept(count, limit, batch)
    assert rows == kept(count, limit, count)
    assert rows == sorted(set(rows)) and len(rows) == min(count, limit)


def test_kept_rows_are_an_even_choice() -> None:
    """An archive is in the order of its classes: the first rows alone would be of the first class."""
    rows = kept(10_000, 1_000, 64)
    counts = np.bincount(np.array(rows) // 1000, minlength=10)
    assert counts.min() > 70 and counts.max() < 130, counts
