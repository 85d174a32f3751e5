"""Group norms as sums by channel are group norms."""

from __future__ import annotations

import pytest
import torch
from small_programs import CHANNELS
from torch import Tensor, fx, nn

from dmq_fx.lowering.group_norm import decompose_group_norms
from dmq_fx.program.graph_tools import working_copy
from dmq_fx.tracing import trace

aten = torch.ops.aten
SHAPES = {"image": (4, 3), "row": (1, 5), "video": (2, 3, 4)}


class Norms(nn.Module):
    """Two group norms, with weights of their own and without."""

    def __init__(self, groups: int, affine: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.first = nn.GroupNorm(groups, CHANNELS, eps, affine)
        self.second = nn.GroupNorm(groups, CHANNELS, eps, affine)

    def forward(self, sample: Tensor) -> Tensor:
        return self.second(nn.functional.silu(self.first(sample)))


def graph_of(module: nn.Module, *size: int, dynamic_size: bool = False) -> fx.GraphModule:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    given = {"sample": torch.zeros(2, CHANNELS, *size)}
    return working_copy(trace(module.eval(), given, dynamic_size=dynamic_size).graph_module)


def inputs(*size: int, batch: int = 3, mean: float = 0.0) -> Tensor:
    return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(1)) + mean


def targets(module: fx.GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("groups", [1, 2, CHANNELS])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_computes_the_same(groups: int, affine: bool, shape: str) -> None:
    size = SHAPES[shape]
    module = graph_of(Norms(groups, affine), *size)
    expected = [module(inputs(*size, batch=batch))[0] for batch in (1, 3)]
    assert decompose_group_norms(module) == 2
    assert aten.group_norm.default not in targets(module)
    for batch, wanted in zip((1, 3), expected, strict=True):
        torch.testing.assert_close(module(inputs(*size, batch=batch))[0], wanted, rtol=1e-4, atol=1e-4)


def test_epsilon_of_a_constant_image() -> None:
    module = graph_of(Norms(2, True, eps=0.25), 4, 4)
    x = torch.full((2, CHANNELS, 4, 4), 3.0)
    expected = module(x)[0]
    decompose_group_norms(module)
    torch.testing.assert_close(module(x)[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0])
def test_values_far_from_zero(mean: float) -> None:
    """The mean square less the square of the mean loses less than bfloat16 has lost already."""
    module = graph_of(Norms(2, True).requires_grad_(False), 8, 8)
    exact = module(inputs(8, 8, mean=mean))[0]
    x = inputs(8, 8, mean=mean).to(torch.bfloat16).float()
    rounded = module(x)[0]
    decompose_group_norms(module)
    lost = (rounded - exact).norm()
    assert float((module(x)[0] - rounded).norm()) < 0.1 * float(lost)


def test_bfloat16_in_float32_out() -> None:
    module = graph_of(Norms(2, True), 4, 4)
    expected = module(inputs(4, 4).to(torch.bfloat16).float())[0]
    decompose_group_norms(module)
    found = module(inputs(4, 4).to(torch.bfloat16))[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_matrix_for_norms_of_one_kind() -> None:
    module = graph_of(Norms(2, True), 4, 4)
    decompose_group_norms(module)
    matrices = {str(node.target) for node in module.graph.nodes if node.op == "get_attr" and "groups" in node.target}
    assert len(matrices) == 1


def test_left_where_there_are_no_pixels_or_their_number_is_not_known() -> None:
    for module in (graph_of(Norms(2, True), 5), graph_of(Norms(2, True), 4, 4, dynamic_size=True)):
        before = targets(module)
        assert decompose_group_norms(module) == 0
        assert targets(module) == before


@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
def test_centered_is_as_exact_as_the_operator(mean: float) -> None:
    """For float32 values: the variance of values less their mean, where the difference of two squares is lost."""
    module = graph_of(Norms(2, True).requires_grad_(False), 8, 8)
    x = inputs(8, 8, mean=mean)
    exact = graph_of(Norms(2, True).requires_grad_(False).double(), 8, 8)(x.double())[0]
    lost = (module(x)[0] - exact).norm()
    decompose_group_norms(module, centered=True)
    assert aten.group_norm.default not in targets(module)
    assert float((module(x)[0] - exact).norm()) < 4 * float(lost) + 1e-5
