"""oneDNN's int8 operators: exact sums, and the shapes that a compiler is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_programs import needs_vnni
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dmq_fx.lowering.cpu import multiplies_exactly
from dmq_fx.lowering.onednn import KERNEL_CALLS, PREPACK, SHIFTED, onednn

pytestmark = needs_vnni
dmq = torch.ops.dmq
GEOMETRY: list[tuple[Any, ...]] = [
    ([1, 1], [0, 0], [1, 1], 1),
    ([2, 1], [1, 2], [1, 1], 1),
    ([1, 1], [2, 2], [2, 2], 2),
    ([1, 1], [1, 1], [1, 1], 4),
]


def numbers(groups: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [2, 4, 6, 6], weights [8, 4 / groups, 3, 3], their scales, a bias."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randint(0, 256, (2, 4, 6, 6), generator=generator, dtype=torch.uint8),
        torch.randint(-128, 128, (8, 4 // groups, 3, 3), generator=generator, dtype=torch.int8),
        torch.rand(8, generator=generator) + 0.5,
        torch.randn(8, generator=generator),
    )


def scalars(scale: float, zero_point: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(scale), torch.tensor(zero_point)


@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_with_weights_of_the_call(geometry: tuple[Any, ...], dtype: torch.dtype) -> None:
    x, weight, scale, bias = numbers(geometry[-1])
    zeros = torch.zeros(8, dtype=torch.int64)
    arguments = (x, *scalars(0.25, 0), weight, scale, zeros, bias, *geometry, dtype)
    found = dmq.qconv_shifted(*arguments)
    sums = torch.ops.aten.convolution(x.double(), weight.double(), None, *geometry[:3], False, [0, 0], geometry[3])
    expected = sums * (0.25 * scale.double()).reshape(-1, 1, 1) + bias.double().reshape(-1, 1, 1)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert_told(dmq.qconv_shifted.default, arguments, found)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_with_weights_of_the_call(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, (*shape, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    _, weight, scale, bias = numbers()
    weight = weight[:, :, 0, 0].contiguous()
    arguments = (x, *scalars(0.5, 77), weight, scale, torch.zeros(8, dtype=torch.int64), bias, dtype)
    found = dmq.qlinear_shifted(*arguments)
    expected = (x.double() - 77) @ weight.double().t() * (0.5 * scale.double()) + bias.double()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert_told(dmq.qlinear_shifted.default, arguments, found)


def test_packing() -> None:
    _, weight, scale, _ = numbers()
    matrix = weight[:, :, 0, 0].contiguous()
    with FakeTensorMode(allow_non_fake_inputs=True):
        told = [
            onednn.qconv_prepack(weight, scale, 1.0, 0, [1, 1], [0, 0], [1, 1], 1, None),
            onednn.qlinear_prepack(matrix, None),
        ]
    assert [(tuple(value.shape), value.dtype) for value in told] == [((8, 4, 3, 3), torch.int8), ((4, 8), torch.int8)]
    assert onednn.qlinear_prepack(matrix, None).shape == told[1].shape


def test_largest_sums_do_not_saturate() -> None:
    assert multiplies_exactly()
    x = torch.full((2, 4096), 255, dtype=torch.uint8)
    weight = torch.full((3, 4096), -128, dtype=torch.int8)
    one, zeros = torch.ones(3), torch.zeros(3, dtype=torch.int64)
    found = dmq.qlinear_shifted(x, *scalars(1.0, 0), weight, one, zeros, None, torch.float32)
    assert bool((found == -4096 * 255 * 128).all())


def test_operators_are_listed() -> None:
    assert set(SHIFTED) < set(KERNEL_CALLS) and not set(PREPACK) & set(KERNEL_CALLS)
    assert len(KERNEL_CALLS) == 7


def assert_told(operator: Any, arguments: tuple[Any, ...], found: Tensor) -> None:
    """A compiler is told the shape, type and strides that the operator gives."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        told = operator(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
    assert (told.shape, told.dtype, told.stride()) == (found.shape, found.dtype, found.stride())
