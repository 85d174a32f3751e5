"""Products that read one value become one product, which gives the same bits."""

from __future__ import annotations

import pytest
import torch
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    STATIC,
    W4,
    W8,
    Pair,
    converted,
    copy_of,
    grouped,
    inputs,
    kernel_nodes,
    lower,
    needs_vnni,
    scale_channels,
    traced,
)
from torch import Tensor, fx, nn

from dmq_fx.lowering.int8_sites import reached_kernels
from dmq_fx.lowering.joined import join_linears
from dmq_fx.lowering.onednn import onednn
from dmq_fx.lowering.parity import TOLERANCE, site_errors
from dmq_fx.recipe.language import ActivationSpec

pytestmark = needs_vnni
LINEARS = (onednn.qlinear_pointwise.default, onednn.qlinear_pointwise.tensor)


class Block(nn.Module):
    """Three layers that read one value, one without a bias and of another width; one that reads their sum."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        widths = (CHANNELS, 5, CHANNELS)
        self.first = nn.ModuleList(nn.Linear(CHANNELS, width, bias=width != 5 and bias) for width in widths)
        self.second = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        x = (sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)).flatten(2).transpose(1, 2)
        a, b, c = (layer(x) for layer in self.first)
        return self.second(a * c), b.contiguous().view(sample.shape[0], -1)


def calls(graph: fx.Graph) -> int:
    return sum(node.target in LINEARS for node in graph.nodes)


def joined(pair: Pair) -> tuple[Pair, int]:
    """A lowered program with joined products, and how many calls that saves."""
    other = Pair(pair.fake, copy_of(pair.lowered))
    return other, join_linears(other.lowered.graph_module)


@pytest.mark.parametrize("spec", [STATIC, BY_TIMESTEP], ids=["static", "per timestep"])
@pytest.mark.parametrize("bias", [True, False], ids=["some with a bias", "none with a bias"])
def test_the_same_bits(spec: ActivationSpec, bias: bool) -> None:
    pair = lower(converted(grouped(traced(Block(bias)), (W8, spec))))
    other, saved = joined(pair)
    assert saved == 2 and calls(pair.lowered.graph_module.graph) == 4 and calls(other.lowered.graph_module.graph) == 2
    names = {name for name, _ in other.lowered.graph_module.named_buffers()}
    assert not any(name.startswith("first.") for name in names)  # the parts are let go
    for timestep in (900, 100):
        given = inputs(timestep, 3)
        with torch.no_grad():
            expected, found = (each.lowered.graph_module(*given) for each in (pair, other))
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
        assert max(site_errors(other.fake, other.lowered, given).values()) < TOLERANCE


def test_each_part_is_its_site() -> None:
    pair = lower(converted(grouped(traced(Block()), (W8, BY_TIMESTEP))))
    other, _ = joined(pair)
    assert reached_kernels(other.lowered.graph_module.graph) == reached_kernels(pair.lowered.graph_module.graph)
    shapes = [node.meta["val"].shape[-1] for node in kernel_nodes(other.lowered.graph_module.graph).values()]
    assert sorted(shapes) == sorted([CHANNELS, 5, CHANNELS, CHANNELS])


@pytest.mark.parametrize("kind", ["ranges of their own", "shifts of each timestep"])
def test_what_stays_apart(kind: str) -> None:
    if kind == "shifts of each timestep":
        program = grouped(traced(Block()), (W4, BY_TIMESTEP))
        scale_channels(program, shifts=3)
    else:
        specs = iter([STATIC, BY_TIMESTEP, ActivationSpec(bits=6), BY_TIMESTEP])
        program = grouped(traced(Block()), lambda site: (W4, next(specs)))
    pair = lower(converted(program))
    other, saved = joined(pair)
    assert saved == 0 and len(reached_kernels(other.lowered.graph_module.graph)) == 4
