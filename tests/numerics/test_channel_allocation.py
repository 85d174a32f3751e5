"""Which channels get more bits: the numbers of MPQ-DM's specification (its T7 to T13)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmq_fx.numerics import quantize_weight
from dmq_fx.numerics.channel_allocation import candidates, kurtosis, order_by, output_error
from dmq_fx.numerics.equivalent_scaling import balanced_scale, largest_by_input
from dmq_fx.recipe.language import WeightSpec

ALL = (0, 10, 20, 30, 40, 50)


def test_balanced_scale():
    """T7: both sides of every channel have the same largest value, and the product stays."""
    x = torch.tensor([[1, -8, 0.5], [2, 4, -0.25]])
    w = torch.tensor([[0.5, 0.02, 1], [-0.25, 0.08, -2]])
    s = balanced_scale(x.abs().amax(0), largest_by_input([w]))
    torch.testing.assert_close(s, torch.tensor([2, 10, 0.5]))
    torch.testing.assert_close((w * s).abs().amax(0), torch.tensor([1, 0.8, 1]))
    torch.testing.assert_close((x / s).abs().amax(0), torch.tensor([1, 0.8, 1]))
    torch.testing.assert_close((x / s) @ (w * s).T, torch.tensor([[0.84, -1.89], [0.83, 0.32]]))
    again = balanced_scale((x / s).abs().amax(0), largest_by_input([w * s]))
    torch.testing.assert_close(again, torch.ones(3))  # T8


def test_channels_without_values_are_not_scaled():
    s = balanced_scale(torch.tensor([0.0, 3.0, 4.0, 9e9]), torch.tensor([2.0, 0.0, 1.0, 1e-4]))
    assert s.tolist() == [1.0, 1.0, 2.0, 1e4]


def test_scaled_convolution():
    """T8: x / s and W s, with stride and padding."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 4, 9, 9, generator=generator), torch.randn(6, 4, 3, 3, generator=generator)
    s = balanced_scale(x.abs().amax((0, 2, 3)), largest_by_input([w])).reshape(1, -1, 1, 1)
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(
        conv(x / s, w * s, stride=2, padding=1), conv(x, w, stride=2, padding=1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("row", "expected"), [([1, 2, 3, 4, 100], 2.077899), ([1, 2, 3, 4, 5], 1.088), ([-1, 1, -1, 1], 0.5625)]
)
def test_kurtosis(row, expected):
    """T9."""
    values = torch.tensor([row], dtype=torch.float32)
    assert kurtosis(values).item() == pytest.approx(expected, rel=1e-6)
    assert kurtosis(values * -3 + 7).item() == pytest.approx(expected, rel=1e-4)


def test_kurtosis_of_known_distributions():
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.randn(200_000, generator=generator), torch.rand(200_000, generator=generator)])
    assert kurtosis(rows).tolist() == pytest.approx([3.0, 1.8], abs=0.05)
    assert kurtosis(torch.tensor([[2.0, 2.0], [0.1, 0.1]])).tolist() == [0.0, 0.0]
    assert kurtosis(torch.ones(3, 1)).tolist() == [0.0, 0.0, 0.0]


def test_equals_keep_their_order():
    assert order_by(torch.tensor([1.0, 3.0, 1.0, 3.0, 2.0])).tolist() == [1, 3, 4, 0, 2]


class Layer:
    """T10: a layer of 10 outputs and 8 inputs with two outliers."""

    def __init__(self):
        i, j = torch.arange(10.0)[:, None], torch.arange(8.0)[None]
        self.w = torch.sin(1 + 3 * i + 7 * j)
        self.w[2, 3] *= 6
        self.w[7, 3] *= 6
        i = torch.arange(6.0)[:, None]
        self.x = torch.cos(2 + 5 * i + 3 * j) * (1 + j)
        self.s = balanced_scale(self.x.abs().amax(0), largest_by_input([self.w]))

    def errors(self, bits, range):
        spec, scaled, rows = WeightSpec(bits=3, symmetric=False, range=range), self.w * self.s, []
        for width in (bits - 1, bits, bits + 1):
            rounded = quantize_weight(scaled, spec, torch.full((10,), width)).dequantized()
            rows.append(((self.x / self.s) @ (rounded - scaled).T).double().square().sum(0) / 60)
        return torch.stack(rows)


def test_scores_are_those_after_scaling():
    layer = Layer()
    assert layer.s.tolist() == pytest.approx([1.0901, 1.4080, 1.6994, 0.8761, 2.7293, 2.4596, 2.6344, 2.7757], abs=1e-4)
    found = kurtosis(layer.w * layer.s)
    assert found.tolist() == pytest.approx(
        [1.0640, 1.0679, 0.9751, 1.1124, 1.1501, 1.1998, 1.2636, 1.8928, 1.4366, 1.5409], abs=1e-4
    )
    assert order_by(found).tolist() == [7, 9, 8, 6, 5, 4, 3, 1, 0, 2]
    assert order_by(kurtosis(layer.w)).tolist().index(2) == 3  # before it, channel 2 is not the last


@pytest.mark.parametrize(
    ("bits", "range", "expected"),
    [
        (4, "minmax", [0.23385, 0.10713, 0.14958, 0.15342, 0.20212, 0.21406]),
        (3, "minmax", [1.32561, 0.59183, 0.69233, 0.80019, 0.74335, 0.74527]),
        (2, "minmax", [1.97187, 3.22158, 3.14382, 2.86785, 3.30782, 11.29729]),
        (4, "mse", [0.21397, 0.10224, 0.14494, 0.14103, 0.18540, 0.19595]),
        (3, "mse", [1.29241, 0.59899, 0.44492, 0.54239, 0.98001, 1.73644]),
        (2, "mse", [5.08733, 6.72975, 5.99090, 5.66128, 5.04334, 4.76385]),
    ],
)
def test_errors_of_the_candidates(bits, range, expected):
    layer = Layer()
    order, errors = order_by(kurtosis(layer.w * layer.s)), layer.errors(bits, range)
    found = [output_error(errors, order, candidate) for candidate in candidates(10, ALL)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_bits_of_the_chosen_candidate():
    bits = candidates(10, (0, 10))[1].bits(torch.tensor([7, 9, 8, 6, 5, 4, 3, 1, 0, 2]), 3)
    assert bits.tolist() == [3, 3, 2, 3, 3, 3, 3, 4, 3, 3]


@given(st.integers(1, 200), st.sampled_from([0.0, 0.1, 0.25]), st.integers(2, 7), st.integers(0, 99))
def test_bits_of_every_candidate(channels, extra, bits, seed):
    """T11, T13: an exact sum of bits; permuted channels have permuted bits."""
    scores = torch.rand(channels, generator=torch.Generator().manual_seed(seed)).double()
    swap = torch.randperm(channels, generator=torch.Generator().manual_seed(seed + 1))
    found = candidates(channels, ALL, extra)
    assert found[0].percent == 0 and len({(c.more, c.fewer) for c in found}) == len(found)
    for candidate in found:
        given = candidate.bits(order_by(scores), bits)
        assert int(given.sum()) == bits * channels + int(extra * channels + 1e-9)
        assert int((given == bits - 1).sum()) == candidate.fewer and int((given == bits + 1).sum()) == candidate.more
        assert set(given.tolist()) <= {bits - 1, bits, bits + 1}
        if len(scores.unique()) == channels:
            assert torch.equal(candidate.bits(order_by(scores[swap]), bits), given[swap])


def test_groups_are_tenths_rounded_down():
    sizes = [candidates(channels, (10,))[0].fewer for channels in (192, 224, 384, 448, 576, 960)]
    assert sizes == [19, 22, 38, 44, 57, 96]
    assert [(c.more, c.fewer) for c in candidates(4, ALL)] == [(0, 0), (1, 1), (2, 2)]
    assert [(c.more, c.fewer) for c in candidates(20, ALL, 0.1)] == [(2, 0), (4, 2), (6, 4), (8, 6), (10, 8)]
    assert candidates(1, (50,)) == ()
