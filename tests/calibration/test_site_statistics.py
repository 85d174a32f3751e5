"""Statistics of a site's input and weight: exact where they are exact, of constant size, the same as numpy's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmq_fx.calibration import site_statistics
from dmq_fx.calibration.site_statistics import BINS, Distribution, StatisticsCollector
from dmq_fx.observers.histogram import grown


class Scaled(StatisticsCollector):
    """A collector whose factor is given, without a program."""

    def __init__(self, slots: int, factor: Tensor | None) -> None:
        self.slots, self.inputs, self._given = slots, {}, factor

    def _factor(self, planned: Any, channels: int, device: torch.device) -> Tensor | None:
        return self._given


def planned(op: str = "conv2d") -> Any:
    return SimpleNamespace(name="site", site=SimpleNamespace(op=op))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_ranges_and_channels_are_exact(channels: int, slots: int, seed: int) -> None:
    """Over several calls of mixed timesteps, before and after a factor by timestep and channel."""
    generator = torch.Generator().manual_seed(seed)
    factor = 2.0 ** torch.randint(-2, 3, (slots, channels), generator=generator).float()
    collector = Scaled(slots, factor)
    seen: list[tuple[Tensor, Tensor]] = []
    for _ in range(3):
        x = torch.randn(4, channels, 5, 3, generator=generator)
        slot = torch.randint(0, slots, (4,), generator=generator)
        collector.see(planned(), x, slot)
        seen.append((x, slot))
    x, slot = torch.cat([x for x, _ in seen]), torch.cat([slot for _, slot in seen])
    scaled = x * factor[slot][:, :, None, None]
    found = collector.inputs["site"]
    assert torch.equal(found.before.channels, x.abs().amax((0, 2, 3)))
    assert torch.equal(found.after.channels, scaled.abs().amax((0, 2, 3)))
    for index in range(slots):
        rows = slot == index
        if bool(rows.any()):
            assert (found.low[index], found.high[index]) == (x[rows].min(), x[rows].max())
            assert (found.scaled_low[index], found.scaled_high[index]) == (scaled[rows].min(), scaled[rows].max())
        else:
            assert found.low[index] == torch.inf
    assert float(found.before.counts.sum()) == x.numel() == float(found.after.counts.sum())
    middles = ((torch.arange(BINS) + 0.5) * (2 / BINS) - 1) * found.after.limit
    assert (
        abs(float((middles * found.after.counts).sum()) / x.numel() - float(scaled.mean()))
        <= 2 * found.after.limit / BINS
    )


def test_values_of_a_linear_layer_are_scaled_by_the_last_axis() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    collector = Scaled(1, torch.tensor([[1.0, 2.0, 4.0, 0.5]]))
    collector.see(planned("linear"), x.transpose(0, 1).contiguous().transpose(0, 1), None)
    found = collector.inputs["site"]
    assert found.before.channels.tolist() == [20, 21, 22, 23] and found.after.channels.tolist() == [20, 42, 88, 11.5]
    assert found.after.moments[1].item() == float((x * torch.tensor([1.0, 2.0, 4.0, 0.5])).sum())


def test_an_input_that_is_not_scaled_is_kept_once() -> None:
    collector = Scaled(2, None)
    collector.see(planned(), torch.ones(2, 3, 2, 2), torch.tensor([0, 1]))
    found = collector.inputs["site"]
    assert found.after is found.before and found.scaled_low is found.low


def test_kurtosis_is_that_of_the_values() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)).exp()
    found = Distribution(torch.zeros(1))
    found.add(values[:1000])
    found.add(values[1000:])
    centred = values.double().numpy() - values.double().numpy().mean()
    assert found.kurtosis == pytest.approx((centred**4).mean() / (centred**2).mean() ** 2, rel=1e-6)
    assert np.isnan(Distribution(torch.zeros(1)).kurtosis)


def test_memory_does_not_grow_with_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_statistics, "DRAWN", 64)
    collector = Scaled(2, None)
    for call in range(5):
        collector.see(planned(), torch.full((2, 3, 40, 40), float(call)), torch.tensor([0, 1]))
    found = collector.inputs["site"]
    assert found.before.channels.shape == (3,) and found.before.counts.shape == (BINS,) and found.low.shape == (2,)
    assert float(found.before.counts.sum()) < 5 * 200  # evenly spaced values, not all 9600 of a call
    assert found.high.tolist() == [4.0, 4.0]


@given(st.lists(st.floats(2**-20, 2**20), min_size=1, max_size=6))
def test_a_histogram_grows_without_losing_a_count(limits: list[float]) -> None:
    counts, limit = torch.zeros(16), 0.0
    for largest in limits:
        counts, limit = grown(counts, limit, largest)
        counts = counts + torch.histc(torch.tensor([largest]), 16, -limit, limit)
    assert float(counts.sum()) == len(limits) and limit >= max(limits)
