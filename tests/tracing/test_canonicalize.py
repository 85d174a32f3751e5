"""Each canonicalization on a small graph: what goes, what stays, and that values do not change."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dmq_fx.errors import TraceError
from dmq_fx.tracing import trace

INPUT = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


def graph_of(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[list[str], Callable]:
    """The ops of the traced function, and the graph."""

    class Model(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return function(sample)

    traced = trace(Model().eval(), {"sample": INPUT})
    ops = [str(node.target).removeprefix("aten.") for node in traced.graph.nodes if node.op == "call_function"]
    return ops, lambda x: traced.graph_module(x)[0]


@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (lambda x: nn.functional.dropout(x, 0.0, training=True) + 1, ["add.Tensor"]),
        (lambda x: nn.functional.dropout(x, 0.5, training=False) + 1, ["add.Tensor"]),
        (lambda x: x.to(torch.float32) + 1, ["add.Tensor"]),
        (lambda x: x.float().detach() + 1, ["add.Tensor"]),
        (lambda x: x[:, :] + 1, ["add.Tensor"]),
        (lambda x: x[:, 1:] + 1, ["slice.Tensor", "add.Tensor"]),
        (lambda x: (x + 1) / 1.0, ["add.Tensor"]),
        (lambda x: (x + 1) * 1, ["add.Tensor"]),
        (lambda x: (x + 1) / 2.0, ["add.Tensor", "div.Tensor"]),
        (lambda x: x.double() + 1, ["to.dtype", "add.Tensor"]),
        (lambda x: (x * 3, x + 1)[1], ["add.Tensor"]),
    ],
)
def test_what_stays(function: Callable, ops: list[str]) -> None:
    found, graph = graph_of(function)
    assert found == ops
    torch.testing.assert_close(graph(INPUT), function(INPUT))


def in_place_sum(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    before = y.sum(1, keepdim=True)
    y += 1
    y.mul_(3)
    return y + before


def write_into_parts(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    out[..., 0::2] = x[..., 1::2]
    out[..., 1::2] = -x[..., 0::2]
    out[0] = 5
    return out


@pytest.mark.parametrize("function", [in_place_sum, write_into_parts])
def test_in_place_operations_become_values(function: Callable) -> None:
    ops, graph = graph_of(function)
    assert not [op for op in ops if op.split(".")[0].endswith("_")]
    torch.testing.assert_close(graph(INPUT.clone()), function(INPUT.clone()))


def shared_view(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    view = y[:, :3]
    y += 1
    return view


def changes_its_input(x: torch.Tensor) -> torch.Tensor:
    x += 1
    return x


@pytest.mark.parametrize("function", [shared_view, changes_its_input])
def test_mutations_that_others_see_are_refused(function: Callable) -> None:
    with pytest.raises(TraceError, match=r"aten\.add_\.Tensor writes into a tensor that other tensors share"):
        graph_of(function)
