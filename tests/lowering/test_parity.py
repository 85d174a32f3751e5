"""Errors of sites: each for the input that it has in fake quantization."""

from __future__ import annotations

import pytest
import torch
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    W8,
    Pair,
    converted,
    grouped,
    inputs,
    lower,
    needs_vnni,
    traced,
)
from torch import Tensor, nn

from dmq_fx.lowering.parity import TOLERANCE, site_errors
from dmq_fx.program.graph_tools import get_tensor, set_buffer

pytestmark = needs_vnni


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.plain = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = self.first(sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1))
        return self.last(self.plain(self.second(h.sigmoid())).sigmoid())


@pytest.fixture
def pair() -> Pair:
    specs = {"plain": (None, None)}
    return lower(converted(grouped(traced(Chain()), lambda site: specs.get(site.name, (W8, BY_TIMESTEP)))))


def change(pair: Pair, name: str, factor: float) -> None:
    module = pair.lowered.graph_module
    set_buffer(module, name, get_tensor(module, name) * factor)


def test_only_sites_with_a_kernel_are_measured(pair: Pair) -> None:
    errors = site_errors(pair.fake, pair.lowered, inputs(500))
    assert list(errors) == ["first", "second", "last"]
    assert max(errors.values()) < TOLERANCE


def test_a_wrong_site_is_found_and_spoils_no_other(pair: Pair) -> None:
    change(pair, "second.weight_int8_scale", 1.01)
    errors = site_errors(pair.fake, pair.lowered, inputs(500))
    assert 1e-3 < errors.pop("second") < 2e-2
    assert max(errors.values()) < TOLERANCE


def test_a_difference_between_sites_is_found_at_the_next(pair: Pair) -> None:
    change(pair, "plain.bias", -3.0)
    errors = site_errors(pair.fake, pair.lowered, inputs(500))
    assert errors.pop("last") > 1e-3
    assert max(errors.values()) < TOLERANCE


def test_a_wrong_range_of_one_timestep_is_found_there(pair: Pair) -> None:
    table = get_tensor(pair.lowered.graph_module, "dmq.activation_scale").clone()
    table[1] *= 1.02
    set_buffer(pair.lowered.graph_module, "dmq.activation_scale", table)
    assert max(site_errors(pair.fake, pair.lowered, inputs(900)).values()) < TOLERANCE
    assert min(site_errors(pair.fake, pair.lowered, inputs(500)).values()) > TOLERANCE


@pytest.mark.parametrize("factor", [torch.nan, torch.inf], ids=["nan", "infinite"])
def test_what_is_not_finite_is_not_within_the_tolerance(pair: Pair, factor: float) -> None:
    change(pair, "second.weight_int8_scale", factor)
    errors = site_errors(pair.fake, pair.lowered, inputs(500))
    assert not errors["second"] <= TOLERANCE
    assert max(0.0, errors["second"]) > TOLERANCE  # how the largest of several calls is found


def test_a_site_that_gives_zeros(pair: Pair) -> None:
    """Integers that all are the zero point: rounding of sums that cancel is no error, however small the output."""
    sample, timesteps = inputs(500)
    errors = site_errors(pair.fake, pair.lowered, (torch.zeros_like(sample), timesteps))
    assert errors["first"] < TOLERANCE


def test_graphs_are_left_as_they_were(pair: Pair) -> None:
    graphs = [program.graph_module.graph for program in (pair.fake, pair.lowered)]
    before = [str(graph) for graph in graphs]
    site_errors(pair.fake, pair.lowered, inputs(500))
    assert [str(graph) for graph in graphs] == before
