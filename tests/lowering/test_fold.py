"""Weights packed once compute what weights packed in every call do."""

from __future__ import annotations

from typing import Any
from weakref import ref

import pytest
import torch
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    STATIC,
    TIMESTEPS,
    W4,
    converted,
    copy_of,
    grouped,
    inputs,
    lower,
    needs_vnni,
    scale_channels,
    traced_layers,
)
from torch import nn

from dmq_fx.lowering.fold import fold_packed_weights
from dmq_fx.lowering.onednn import PREPACK, SHIFTED
from dmq_fx.program.graph_tools import set_buffer
from dmq_fx.recipe.language import ActivationSpec
from dmq_fx.tracing import TracedModel

pytestmark = needs_vnni


@pytest.fixture(scope="module")
def model() -> TracedModel:
    return traced_layers(
        ("image", nn.Conv2d(CHANNELS, 4, 3, padding=1)),
        ("image", nn.Conv2d(CHANNELS, 4, 1)),
        ("image", nn.Conv2d(CHANNELS, 6, 3, groups=3)),
        ("tokens", nn.Linear(CHANNELS, 4)),
    )


@pytest.mark.parametrize("spec", [STATIC, BY_TIMESTEP], ids=["static", "per timestep"])
@pytest.mark.parametrize("shifts", [0, 1], ids=["plain", "shared shifts"])
def test_computes_the_same(model: TracedModel, spec: ActivationSpec, shifts: int) -> None:
    program = grouped(model, (W4, spec))
    scale_channels(program, shifts=shifts)
    pair = lower(converted(program))
    folded = copy_of(pair.lowered).graph_module
    assert sum(node.target in PREPACK for node in folded.graph.nodes) == 4
    assert fold_packed_weights(folded) is folded
    assert not [node for node in folded.graph.nodes if node.target in PREPACK]
    for timestep in (900, 100):
        found, expected = folded(*inputs(timestep)), pair.lowered.graph_module(*inputs(timestep))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_unpacked_weights_are_dropped(model: TracedModel) -> None:
    module = lower(converted(grouped(model, (W4, STATIC)))).lowered.graph_module
    assert sum(name.endswith(".weight_int8") for name in module.state_dict()) == 4
    fold_packed_weights(module)
    names = set(module.state_dict())
    assert not {name for name in names if name.endswith(".weight_int8")}
    assert {f"dmq_packed_{number}" for number in range(4)} < names


def test_each_weight_is_let_go_once_it_is_packed(model: TracedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model would not fit twice: when weight k is packed, those before it are gone."""
    module = lower(converted(grouped(model, (W4, STATIC)))).lowered.graph_module
    held = [ref(tensor) for name, tensor in module.named_buffers() if name.endswith(".weight_int8")]
    left = []

    def count(*arguments: Any) -> None:
        left.append(sum(one() is not None for one in held))
        set_buffer(*arguments)

    monkeypatch.setattr("dmq_fx.lowering.fold.set_buffer", count)
    fold_packed_weights(module)
    assert left == [4, 3, 2, 1] and not any(one() is not None for one in held)


def test_weights_of_every_timestep_stay_as_they_are(model: TracedModel) -> None:
    program = grouped(model, (W4, BY_TIMESTEP))
    scale_channels(program, shifts=len(TIMESTEPS))
    module = lower(converted(program)).lowered.graph_module
    expected = module(*inputs(500))
    fold_packed_weights(module)
    assert sum(node.target in SHIFTED for node in module.graph.nodes) == 3  # all but the grouped convolution
    assert all(torch.equal(one, other) for one, other in zip(module(*inputs(500)), expected, strict=True))
