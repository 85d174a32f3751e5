"""Ranges found by streaming, one per slot."""

from __future__ import annotations

import pytest
import torch
from torchao.quantization.pt2e.observer import MinMaxObserver, MovingAverageMinMaxObserver

from dmq_fx.errors import CalibrationError
from dmq_fx.observers import HistogramObserver, make_observer
from dmq_fx.recipe.language import ActivationSpec


def batches(count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 8, 5, 5, generator=generator) * (index + 1) for index in range(count)]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("minmax", MinMaxObserver(dtype=torch.uint8, qscheme=torch.per_tensor_affine)),
        (
            "ema_minmax",
            MovingAverageMinMaxObserver(averaging_constant=0.05, dtype=torch.uint8, qscheme=torch.per_tensor_affine),
        ),
    ],
)
def test_one_slot_agrees_with_torchao(name: str, theirs: MinMaxObserver) -> None:
    ours = make_observer(ActivationSpec(bits=8, range=name), slots=7, site="s")
    for batch in batches():
        assert ours(batch, None) is batch
        theirs(batch)
    scale, zero_point = theirs.calculate_qparams()
    found = ours.calculate_qparams()
    torch.testing.assert_close(found.scale, scale.reshape(1), rtol=1e-5, atol=0)
    assert torch.equal(found.zero_point, zero_point.reshape(1).to(torch.int64))


@pytest.mark.parametrize("name", ["minmax", "ema_minmax", "percentile", "mse"])
def test_slots_are_kept_apart(name: str) -> None:
    """Samples of a mixed batch go to their own slots: each slot is as if it had been alone."""
    spec = ActivationSpec(bits=8, range=name, per_timestep=True)
    mixed = make_observer(spec, slots=2, site="s")
    alone = [make_observer(ActivationSpec(bits=8, range=name), 1, "s") for _ in range(2)]
    for batch in batches():
        batch[2:] *= 100
        mixed(batch, torch.tensor([0, 0, 1, 1]))
        alone[0](batch[:2], None)
        alone[1](batch[2:], None)
    found = mixed.calculate_qparams()
    expected = [observer.calculate_qparams() for observer in alone]
    torch.testing.assert_close(found.scale, torch.cat([e.scale for e in expected]))
    assert torch.equal(found.zero_point, torch.cat([e.zero_point for e in expected]))


def test_rows_of_a_folded_batch_follow_their_sample() -> None:
    """[batch * 3, ...]: every sample's rows take its slot."""
    observer = make_observer(ActivationSpec(bits=8, range="minmax", per_timestep=True), 2, "s")
    observer(torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 30.0])[:, None], torch.tensor([0, 1]))
    assert observer.ranges()[1].tolist() == [3.0, 30.0]


def test_histogram_keeps_every_count_while_it_grows() -> None:
    observer = make_observer(ActivationSpec(bits=8, range="percentile"), 1, "s")
    assert isinstance(observer, HistogramObserver)
    for scale in (0.1, 1.0, 37.0, 5.0):
        observer(torch.linspace(-scale, scale, 1000), None)
    assert float(observer.counts.sum()) == 4000
    assert float(observer.limit[0]) == 64.0


def test_percentile_is_that_of_the_values() -> None:
    x = torch.linspace(0, 1, 100_001)
    observer = make_observer(ActivationSpec(bits=8, range="percentile", percentile=90.0), 1, "s")
    observer(x, None)
    low, high = observer.ranges()
    assert float(low) == pytest.approx(0.05, abs=2e-3)
    assert float(high) == pytest.approx(0.95, abs=2e-3)


def test_percentile_of_everything_is_the_range() -> None:
    observer = make_observer(ActivationSpec(bits=8, range="percentile", percentile=100.0), 1, "s")
    observer(torch.tensor([-1.5, 0.0, 3.25]), None)
    low, high = observer.ranges()
    assert float(low) == pytest.approx(-1.5, abs=1e-3)
    assert float(high) == pytest.approx(3.25, abs=1e-3)


def test_mse_clips_an_outlier() -> None:
    observer = make_observer(ActivationSpec(bits=3, range="mse"), 1, "s")
    observer(torch.cat([torch.linspace(-1, 1, 10_000), torch.tensor([3.0])]), None)
    assert float(observer.ranges()[1]) < 2.5


@pytest.mark.parametrize("name", ["minmax", "ema_minmax", "percentile", "mse"])
def test_slot_without_samples_is_an_error(name: str) -> None:
    observer = make_observer(ActivationSpec(bits=8, range=name, per_timestep=True), 2, "mid_block.conv")
    observer(torch.ones(2, 3), torch.tensor([0, 0]))
    with pytest.raises(CalibrationError, match=r"mid_block\.conv: .* was never seen at timestep slot 1"):
        observer.calculate_qparams()


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["minmax", "ema_minmax", "percentile", "mse"])
def test_values_that_are_not_finite_are_an_error(name: str, bad: float) -> None:
    observer = make_observer(ActivationSpec(bits=8, range=name), 1, "mid_block.conv")
    observer(torch.tensor([1.0, bad]), None)
    with pytest.raises(CalibrationError, match=r"mid_block\.conv: the input of this site is not finite"):
        observer.calculate_qparams()
