"""Attention over integers: the kernel beside plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dmq_fx.errors import BackendError
from dmq_fx.lowering.int8_attention import INT8_ATTENTION, LARGEST_KEYS, attention_parts, reference_parts
from dmq_fx.lowering.own_kernels import build_kernels

SHAPES = {  # batch, heads, queries, keys, width, value width
    "one": (1, 1, 1, 1, 1, 1),
    "one key": (1, 2, 9, 1, 8, 8),
    "odd": (2, 3, 5, 7, 3, 5),
    "prompt": (2, 2, 30, 77, 40, 40),
    "three tiles of keys": (1, 1, 25, 100, 17, 33),
    "whole blocks": (1, 2, 48, 128, 64, 64),
    "wide": (1, 1, 24, 65, 512, 160),
    "long": (1, 1, 6, 4096, 40, 40),
}
ZERO_POINTS = {
    "middle": (128, 120, 0, 131),
    "smallest": (0, 0, 0, 0),
    "largest": (255, 255, 255, 255),
    "mixed": (0, 255, 7, 3),
}
LEVELS = {8: (1 / 255, 0, 255), 4: (1 / 15, 0, 15), "some of 8": (1 / 1000, 3, 200)}
Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, int, int]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    build_kernels()


def integers(*shape: int, generator: torch.Generator) -> Tensor:
    """Of [batch, heads, rows, width], as a view of [batch, rows, heads, width]."""
    batch, heads, rows, width = shape
    return torch.randint(0, 256, (batch, rows, heads, width), dtype=torch.uint8, generator=generator).transpose(1, 2)


def arguments(shape: str = "prompt", zero_points: str = "middle", levels: Any = 8) -> Arguments:
    batch, heads, queries, keys, width, value_width = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    query = integers(batch, heads, queries, width, generator=generator)
    key = integers(batch, heads, keys, width, generator=generator)
    value = integers(batch, heads, keys, value_width, generator=generator)
    share, smallest, largest = LEVELS[levels]
    scales = torch.tensor([0.02, 0.015, share, 0.03])
    return query, key, value, scales, torch.tensor(ZERO_POINTS[zero_points]), width**-0.5, smallest, largest


def exact_parts(given: Arguments) -> tuple[Tensor, Tensor]:
    """Scores, and probabilities as integers yet to be rounded, in float64."""
    query, key, _, scales, zero_points, scale, _, _ = given
    s, z = scales.double(), zero_points.double()
    scores = (query.double() - z[0]) @ (key.double() - z[1]).transpose(-2, -1) * (s[0] * s[1] * scale)
    return scores, scores.softmax(-1) / s[2] + z[2]


def require_close(given: Arguments, *, portable: bool = False) -> None:
    """The parts of the kernel are those of exact arithmetic but for rounding in float32."""
    found = attention_parts(*given, portable=portable)
    scores, levels = exact_parts(given)
    torch.testing.assert_close(found.scores.double(), scores, rtol=1e-6, atol=1e-6)

    _, _, value, s, z, _, smallest, largest = given
    distance = (found.probabilities - levels.clamp(smallest, largest)).abs()
    rounding = 2e-5 * (levels - float(z[2])).abs()
    assert bool((distance <= 0.5 + rounding).all())

    expected = (found.probabilities.double() - float(z[2])) @ (value.double() - float(z[3])) * float(s[2] * s[3])
    torch.testing.assert_close(found.output.double(), expected, rtol=1e-6, atol=0)
    assert found.output.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(INT8_ATTENTION(*given), found.output, rtol=0, atol=0)
    assert torch.equal(INT8_ATTENTION(*given, torch.bfloat16), found.output.bfloat16())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zero_points", ZERO_POINTS)
def test_shapes_and_zero_points(shape: str, zero_points: str) -> None:
    require_close(arguments(shape, zero_points))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("zero_points", ["middle", "mixed"])
def test_levels(levels: Any, zero_points: str) -> None:
    require_close(arguments(zero_points=zero_points, levels=levels))


@pytest.mark.parametrize("zero_points", ZERO_POINTS)
@pytest.mark.parametrize("query", [0, 255])
@pytest.mark.parametrize("key", [0, 255])
@pytest.mark.parametrize("value", [0, 255])
def test_extremes(zero_points: str, query: int, key: int, value: int) -> None:
    given = arguments("wide", zero_points)
    for x, filled in zip(given, (query, key, value), strict=False):
        x.fill_(filled)
    require_close(given)


def test_scores_far_apart() -> None:
    """Shares below the smallest normal number count as zero."""
    given = arguments("long")
    given[3][:2] = 1.0
    require_close(given)


def test_a_scale_far_below_the_shares() -> None:
    given = arguments()
    given[3][2] = 1e-12
    probabilities = attention_parts(*given).probabilities
    assert torch.equal(probabilities, reference_parts(*given).probabilities)
    assert int(probabilities.min()) == 255


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zero_points", ZERO_POINTS)
def test_plain_loops_give_the_same_bits(shape: str, zero_points: str) -> None:
    given = arguments(shape, zero_points)
    for one, other in zip(attention_parts(*given), attention_parts(*given, portable=True), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("levels", LEVELS)
def test_plain_loops(levels: Any) -> None:
    require_close(arguments(levels=levels), portable=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference(shape: str) -> None:
    given = arguments(shape, "mixed")
    expected, found = reference_parts(*given), attention_parts(*given)
    assert torch.equal(found.scores, expected.scores)
    differences = (found.probabilities.int() - expected.probabilities.int()).abs()
    assert int(differences.max()) <= 1
    _, levels = exact_parts(given)
    from_tie = ((levels - levels.floor()) - 0.5).abs()[differences > 0]
    assert bool((from_tie < 1e-3).all())
    same = (differences == 0).all(-1)
    assert torch.equal(found.output[same], expected.output[same])


def test_threads() -> None:
    given = arguments("prompt", "mixed")
    one = attention_parts(*given)
    torch.set_num_threads(2)
    try:
        two = attention_parts(*given)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


def test_strides_are_free() -> None:
    """Keys beside values; contiguous ones; a last dimension that is not; one head for all."""
    given = arguments("whole blocks")
    expected = INT8_ATTENTION(*given)
    packed = torch.cat([x.transpose(1, 2).flatten(2) for x in given[1:3]], -1)
    pair = [x.unflatten(-1, (2, 64)).transpose(1, 2) for x in packed.split(128, -1)]
    assert torch.equal(INT8_ATTENTION(given[0], *pair, *given[3:]), expected)
    assert torch.equal(INT8_ATTENTION(*(x.contiguous() for x in given[:3]), *given[3:]), expected)
    turned = [x.transpose(-2, -1).contiguous().transpose(-2, -1) for x in given[:3]]
    assert torch.equal(INT8_ATTENTION(*turned, *given[3:]), expected)
    shared = [x[:, :1].expand_as(x) for x in given[1:3]]
    repeated = [x.contiguous() for x in shared]
    assert torch.equal(INT8_ATTENTION(given[0], *shared, *given[3:]), INT8_ATTENTION(given[0], *repeated, *given[3:]))


def test_no_queries() -> None:
    given = arguments()
    assert INT8_ATTENTION(given[0][:0], given[1][:0], given[2][:0], *given[3:]).shape == (0, 2, 30, 40)


def test_operator() -> None:
    torch.library.opcheck(INT8_ATTENTION, arguments(), test_utils=("test_schema", "test_faketensor"))
    with FakeTensorMode() as mode:
        given = arguments("odd")
        fake = INT8_ATTENTION(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in given))
    real = INT8_ATTENTION(*arguments("odd"))
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_exported_with_any_batch() -> None:
    class Module(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            found = torch.ops.dmq.int8_attention(query, key, value, *arguments()[3:])
            return found.transpose(1, 2).reshape(query.shape[0], query.shape[2], -1)

    given = arguments()
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(Module(), given[:3], dynamic_shapes=[{0: batch}] * 3, strict=False)
    found = program.module()(*(torch.cat([x, x]) for x in given[:3]))
    assert torch.equal(found, INT8_ATTENTION(*given).transpose(1, 2).reshape(2, 30, -1).repeat(2, 1, 1))


WRONG = {
    "dtype": (0, lambda x: x.float(), r"query is torch.float32 \[2, 2, 30, 40\], not uint8"),
    "dimensions": (2, lambda x: x[0], r"value is torch.uint8 \[2, 77, 40\], not uint8"),
    "batch": (1, lambda x: x[:1], "batches and heads differ"),
    "width": (1, lambda x: x[..., 1:], "widths of query and key"),
    "keys": (2, lambda x: x[:, :, 1:], "numbers of keys and values"),
    "scales' dtype": (3, lambda x: x.double(), r"scales are torch.float64 \[4\]"),
    "scales": (3, lambda x: x * 0, r"scales \[0.0, 0.0, 0.0, 0.0\] .* should be positive"),
    "zero points' dtype": (4, lambda x: x.float(), "zero points are torch.float32"),
    "zero points": (4, lambda x: x - 130, "should be in 0..255"),
    "scale": (5, lambda x: float("nan"), "and nan should be positive and finite"),
    "smallest": (6, lambda x: -1, "from -1 to 255"),
    "largest": (7, lambda x: 256, "from 0 to 256"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(what: str) -> None:
    at, change, message = WRONG[what]
    given = list(arguments())
    given[at] = change(given[at])
    for function in (INT8_ATTENTION, attention_parts, reference_parts):
        with pytest.raises(BackendError, match=message):
            function(*given)


def test_too_many_keys() -> None:
    given = arguments("one")
    many = [x.expand(1, 1, LARGEST_KEYS + 1, 1) for x in given[1:3]]
    with pytest.raises(BackendError, match=f"1 to {LARGEST_KEYS} keys"):
        INT8_ATTENTION(given[0], *many, *given[3:])
