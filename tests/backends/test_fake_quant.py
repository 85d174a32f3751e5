"""The backend fake_quant: the graph as it stands."""

from __future__ import annotations

import pytest
import torch
from small_programs import BY_TIMESTEP, CHANNELS, W8, converted, copy_of, grouped, inputs, traced_layers
from torch import nn

from dmq_fx.backend_api import BACKENDS, LoweringOptions
from dmq_fx.errors import BackendError
from dmq_fx.program import Program


@pytest.fixture(scope="module")
def program() -> Program:
    model = traced_layers(("image", nn.Conv2d(CHANNELS, 4, 3)), ("tokens", nn.Linear(CHANNELS, 4)))
    return converted(grouped(model, lambda site: (W8, BY_TIMESTEP) if site.op == "conv2d" else (None, None)))


def test_no_site_has_a_kernel(program: Program) -> None:
    found = BACKENDS.get("fake_quant").kernels(program)
    assert {name: str(kernel) for name, kernel in found.items()} == {
        "layers.0": "none: fake quantization",
        "layers.1": "none: full precision",
    }


def test_graph_is_not_rewritten(program: Program) -> None:
    own = copy_of(program)
    before = str(own.graph_module.graph)
    lowered = BACKENDS.get("fake_quant").lower(own, LoweringOptions())
    assert lowered is own.graph_module and str(own.graph_module.graph) == before
    found, expected = lowered(*inputs(500)), program.graph_module(*inputs(500))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_type_is_the_artifacts(program: Program) -> None:
    with pytest.raises(BackendError, match="computes in the type that the artifact was compiled with") as refused:
        BACKENDS.get("fake_quant").lower(copy_of(program), LoweringOptions(dtype=torch.bfloat16))
    assert refused.value.hint == "leave the type out"


def test_nothing_is_kept(program: Program) -> None:
    def never() -> Program:
        raise AssertionError("nothing is read")

    assert BACKENDS.get("fake_quant").kept(LoweringOptions(digest="a"), never) is None
