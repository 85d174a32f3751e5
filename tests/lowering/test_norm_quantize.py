"""Group norm, SiLU and integers in one operator: the kernel beside float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from dmq_fx.errors import BackendError
from dmq_fx.lowering.norm_quantize import NORM_QUANTIZE, norm_quantize, reference
from dmq_fx.lowering.own_kernels import build_kernels

SHAPES = {  # batch, channels, pixels; groups
    "one": ((1, 1, 1, 1), 1),
    "one pixel": ((2, 40, 1, 1), 1),
    "one channel a group": ((1, 19, 5, 7), 19),
    "two": ((3, 64, 9, 3), 32),
    "three": ((1, 96, 16, 16), 32),
    "eight": ((2, 24, 17, 16), 3),
    "sixteen": ((1, 80, 3, 33), 5),
    "forty": ((2, 120, 4, 11), 3),
    "wide": ((1, 1040, 2, 3), 26),
    "more than two blocks": ((1, 72, 23, 24), 8),
    "rows": ((2, 130, 77), 13),
    "long rows": ((1, 33, 600), 11),
}
PADDINGS = ((), (0, 0), (1, 1), (0, 2), (2, 0))
BOUNDS = ((0, 255), (0, 15), (3, 200))
Arguments = tuple[Any, ...]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    build_kernels()


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def arguments(
    shape: str = "three",
    *,
    affine: bool = True,
    silu: bool = True,
    by_channel: bool = False,
    zero_point: int = 100,
    bounds: tuple[int, int] = (0, 255),
    padding: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Arguments:
    sizes, groups = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)

    def numbers(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    x = channels_last(numbers(*sizes) * 2 + numbers(sizes[1], *[1] * (len(sizes) - 2)))
    weight, bias = (numbers(sizes[1]) + 1, numbers(sizes[1])) if affine else (None, None)
    reciprocal = (numbers(sizes[1]) * 5).abs() + 5 if by_channel else torch.tensor(31.7)
    padding = padding if len(sizes) == 4 else ()
    return x.to(dtype), weight, bias, groups, 1e-5, silu, reciprocal, torch.tensor(zero_point), *bounds, padding


def exact_levels(given: Arguments) -> Tensor:
    """Integers less their zero point, yet to be rounded, in float64."""
    x, weight, bias, groups, eps, silu, reciprocal, _, _, _, padding = given
    y = torch.group_norm(x.double(), groups, *(v if v is None else v.double() for v in (weight, bias)), eps)
    y = F.silu(y) if silu else y
    if padding:
        y = F.pad(y, (padding[1], padding[1], padding[0], padding[0]))
    return y * reciprocal.double().reshape(-1, *[1] * (x.dim() - 2))


def require_close(given: Arguments, tolerance: float = 1e-4) -> None:
    """Both paths give the integers of exact arithmetic, or one beside where that is `tolerance` away from a tie."""
    levels = exact_levels(given)
    zero_point, low, high = int(given[7]), given[8], given[9]
    expected = (levels.round() + zero_point).clamp(low, high)
    near_tie = (levels - levels.floor() - 0.5).abs() < tolerance
    for portable in (False, True):
        found = norm_quantize(*given, portable=portable)
        apart = (found.double() - expected).abs()
        assert found.shape == expected.shape and found.dtype == torch.uint8
        assert bool((apart <= near_tie.double()).all()), f"{portable=}: up to {float(apart.max())} apart"
        assert found.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("padding", PADDINGS)
def test_shapes_and_padding(shape: str, silu: bool, padding: tuple[int, ...]) -> None:
    require_close(arguments(shape, silu=silu, padding=padding))
    require_close(arguments(shape, silu=silu, padding=padding, by_channel=True, affine=False))


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_integers(silu: bool, zero_point: int, bounds: tuple[int, int]) -> None:
    require_close(arguments(silu=silu, zero_point=zero_point, bounds=bounds, padding=(1, 1)))
    require_close(arguments("sixteen", silu=silu, zero_point=zero_point, bounds=bounds, by_channel=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16(shape: str) -> None:
    require_close(arguments(shape, dtype=torch.bfloat16, padding=(1, 1)))
    require_close(arguments(shape, dtype=torch.bfloat16, silu=False))


def test_weight_or_bias_alone() -> None:
    given = list(arguments())
    require_close((given[0], None, *given[2:]))
    require_close((*given[:2], None, *given[3:]))


@pytest.mark.parametrize("shape", ["forty", "more than two blocks", "long rows"])
@pytest.mark.parametrize("mean", [100.0, -1000.0])
def test_a_mean_far_above_the_deviation(shape: str, mean: float) -> None:
    """The variance stays; what is left is that of x * factor + offset, a few parts in 1e8 of the mean."""
    given = list(arguments(shape, affine=False, silu=False, zero_point=128))
    given[0] = channels_last(torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1)) + mean)
    require_close(tuple(given), tolerance=abs(mean) * 3e-7 * float(given[6]))


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_variance(mean: float) -> None:
    """Where a value that is two deviations above the mean comes out, in millionths; the offset alone may be 4 off."""
    generator = torch.Generator().manual_seed(0)
    x = channels_last(torch.randn((1, 2, 40, 40), generator=generator) + mean)
    x[0, 0, 0, 0], x[0, 1, 0, 0] = mean + 2.0, mean
    exact = (2 + mean - x.double().mean()) / x.double().var(correction=0).sqrt()
    bias = torch.full((2,), -float(exact))
    given = (x, None, bias, 1, 0.0, False, torch.tensor(1e6), torch.tensor(128), 0, 255, ())
    for portable in (False, True):
        apart = int(norm_quantize(*given, portable=portable)[0, 0, 0, 0]) - 128
        assert abs(apart) <= 8


def test_first_pixels_far_from_the_others() -> None:
    given = list(arguments("more than two blocks", affine=False, silu=False))
    given[0][:, :, 0, :3] += 1e4
    given[6] = torch.tensor(3e3)
    require_close(tuple(given), tolerance=1e-2)


@pytest.mark.parametrize("reciprocal", [12.0, 300.0])
def test_silu_everywhere(reciprocal: float) -> None:
    y = torch.linspace(-21, 21, 8401)
    given = (torch.zeros(1, len(y), 1, 1), None, y, 1, 1e-5, True, torch.tensor(reciprocal), torch.tensor(90))
    require_close((*given, 0, 255, ()), tolerance=4e-7 * reciprocal)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("factor", [1e15, 1e25, 1e30])
def test_huge_values(silu: bool, factor: float) -> None:
    """Squares, and products behind the norm, that a float32 does not hold."""
    given = list(arguments("eight", silu=silu, padding=(1, 1)))
    require_close((given[0] * factor, *given[1:]))
    of_bias = given[2] * factor
    require_close((*given[:2], of_bias, *given[3:]), tolerance=0.6)
    require_close((*given[:6], torch.tensor(factor), *given[7:]), tolerance=0.6)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("silu", [True, False])
def test_beyond_the_bounds(portable: bool, silu: bool) -> None:
    """What is far beyond an integer, too."""
    bias = torch.tensor([1e30, -1e30, 3e38, -3e38, 1e3, -1e3, float("inf"), float("-inf")])
    x = torch.randn((1, 8, 3, 3), generator=torch.Generator().manual_seed(0))
    given = (x, None, bias, 8, 1e-5, silu, torch.tensor(1e3), torch.tensor(7), 2, 250, (1, 1))
    found = norm_quantize(*given, portable=portable)[0, :, 1, 1].tolist()
    assert found == [250, 7 if silu else 2] * 4


@pytest.mark.parametrize("value", [0.0, 3.0, -0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constant(value: float, dtype: torch.dtype) -> None:
    given = list(arguments("eight", dtype=dtype))
    given[0].fill_(value)
    require_close(tuple(given), tolerance=0.05)  # 1 / sqrt(eps) makes much of what is rounded


def test_numbers_that_are_none_are_integers_all_the_same() -> None:
    given = list(arguments("eight", bounds=(3, 200)))
    given[0][0, 0, 0, 0] = float("nan")
    for portable in (False, True):
        found = norm_quantize(*given, portable=portable)
        assert int(found.min()) >= 3 and int(found.max()) <= 200
        assert torch.equal(found[1], NORM_QUANTIZE(*given)[1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("silu", [True, False])
def test_reference(shape: str, silu: bool) -> None:
    given = arguments(shape, silu=silu, by_channel=True, padding=(1, 1))
    expected, found = reference(*given), NORM_QUANTIZE(*given)
    differences = (found.int() - expected.int()).abs()
    levels = exact_levels(given)
    near_tie = (levels - levels.floor() - 0.5).abs() < 1e-3
    assert bool((differences <= near_tie.int()).all())
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [(), (1, 1), (2, 0)])
@pytest.mark.parametrize("portable", [False, True])
def test_threads(shape: str, padding: tuple[int, ...], portable: bool) -> None:
    given = arguments(shape, padding=padding)
    one = norm_quantize(*given, portable=portable)
    torch.set_num_threads(2)
    try:
        two = norm_quantize(*given, portable=portable)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, two)


def test_other_memory_formats() -> None:
    given = arguments("eight", padding=(1, 1))
    expected = NORM_QUANTIZE(*given)
    x = given[0]
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    sliced = torch.cat([x, x], 1)[:, : x.shape[1]]
    for other in (x.contiguous(), turned, sliced, torch.stack([x, x], -1)[..., 0]):
        assert torch.equal(NORM_QUANTIZE(other, *given[1:]), expected)
    rows = arguments("rows")
    assert torch.equal(NORM_QUANTIZE(rows[0].contiguous(), *rows[1:]), NORM_QUANTIZE(*rows))


def test_parameters_that_are_not_contiguous() -> None:
    given = list(arguments("eight", by_channel=True))
    expected = NORM_QUANTIZE(*given)
    for i in (1, 2, 6):
        given[i] = torch.stack([given[i], given[i]], -1)[:, 0]
    assert torch.equal(NORM_QUANTIZE(*given), expected)


def test_no_samples() -> None:
    given = arguments("eight", padding=(1, 2))
    for function in (NORM_QUANTIZE, reference):
        assert function(given[0][:0], *given[1:]).shape == (0, 24, 19, 20)


@pytest.mark.parametrize("shape", ["one", "one pixel", "eight", "rows"])
@pytest.mark.parametrize("padding", [(), (1, 2)])
def test_operator(shape: str, padding: tuple[int, ...]) -> None:
    given = arguments(shape, padding=padding)
    torch.library.opcheck(NORM_QUANTIZE, given, test_utils=("test_schema", "test_faketensor"))
    with FakeTensorMode() as mode:
        fake = NORM_QUANTIZE(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in given))
    real = NORM_QUANTIZE(*given)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("shape", ["eight", "rows"])
def test_exported_with_any_batch(shape: str) -> None:
    given = arguments(shape, padding=(1, 2))

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, zero_point: Tensor) -> Tensor:
            return torch.ops.dmq.norm_quantize(x, *given[1:7], zero_point, *given[8:]).flatten(1)

    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(Module(), (given[0], given[7]), dynamic_shapes=[{0: batch}, None], strict=False)
    found = program.module()(torch.cat([given[0]] * 3), given[7])
    assert torch.equal(found, NORM_QUANTIZE(*given).flatten(1).repeat(3, 1))


WRONG = {
    "dtype": (0, lambda x: x.double(), r"x is torch.float64 \[2, 24, 17, 16\], not float32"),
    "dimensions": (0, lambda x: x[0, 0], r"x is torch.float32 \[17, 16\], not float32"),
    "no pixels": (0, lambda x: x[:, :, :0], "has no values to normalize"),
    "groups": (3, lambda x: 5, "24 channels are not 5 groups"),
    "no groups": (3, lambda x: 0, "24 channels are not 0 groups"),
    "weight": (1, lambda x: x[1:], r"weight is torch.float32 \[23\], not float32 \[24\]"),
    "bias": (2, lambda x: x.double(), r"bias is torch.float64 \[24\], not float32 \[24\]"),
    "reciprocal's dtype": (6, lambda x: x.double(), r"reciprocal is torch.float64 \[\]"),
    "reciprocal": (6, lambda x: x.repeat(3), r"reciprocal is torch.float32 \[3\], not one float32 or \[24\]"),
    "zero point's dtype": (7, lambda x: x.float(), "zero point is torch.float32"),
    "zero points": (7, lambda x: x.repeat(24), r"zero point is torch.int64 \[24\], not one integer"),
    "zero point": (7, lambda x: x - 101, r"zero point -1 should be in 0..255"),
    "low": (8, lambda x: -1, "from -1 to 255"),
    "high": (9, lambda x: 256, "from 0 to 256"),
    "padding": (10, lambda x: (1,), r"padding \[1\] of an image \[17, 16\] should be"),
    "negative padding": (10, lambda x: (0, -1), r"padding \[0, -1\] of an image"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(what: str) -> None:
    at, change, message = WRONG[what]
    given = list(arguments("eight"))
    given[at] = change(given[at])
    for function in (NORM_QUANTIZE, reference):
        with pytest.raises(BackendError, match=message):
            function(*given)


def test_rows_are_not_padded() -> None:
    given = arguments("rows")
    with pytest.raises(BackendError, match=r"padding \[1\] of an image \[77\]"):
        NORM_QUANTIZE(*given[:10], (1,))
