"""Attention over integers whose probabilities are integers, too, as an operator of this project.

The kernel is int8_attention.cpp. Native code calls it as a C function (shims), graphs by this operator.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmq_fx.errors import BackendError
from dmq_fx.lowering.own_kernels import Kernel, kernel_if_any

LARGEST_KEYS = (2**31 - 1) // 255**2
"""Sums over keys are in 32 bits."""

LARGEST_WIDTH = 8192
CHUNK = 2**22
"""Scores of one sample that the reference holds at once."""

_NAME, _FUNCTION = "dmq::int8_attention", "dmq_int8_attention"

_library = torch.library.Library("dmq", "FRAGMENT")
_library.define(
    "int8_attention(Tensor query, Tensor key, Tensor value, Tensor scales, Tensor zero_points, float scale, "
    "int smallest, int largest, ScalarType? output_dtype=None) -> Tensor"
)


_Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, int, int]
"""Arguments of the operator, but the type of its result."""


class AttentionParts(NamedTuple):
    """What attention goes through, for parity checks.

    scores: float32 [batch, heads, queries, keys], before the softmax. probabilities: their integers, uint8, of the same
    shape. output: float32 [batch, heads, queries, value width].
    """

    scores: Tensor
    probabilities: Tensor
    output: Tensor


class _Arguments(ctypes.Structure):
    """`Attention` of int8_attention.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "output", "scores", "probabilities")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "queries", "keys", "width", "value_width")),
        *((f"{name}_stride", ctypes.c_int64 * 3) for name in ("query", "key", "value")),
        ("scales", ctypes.c_float * 4),
        ("zero_points", ctypes.c_int32 * 4),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("smallest", "largest", "threads", "portable")),
    ]


@torch.library.impl(_library, "int8_attention", "CPU")
def int8_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    scale: float,
    smallest: int,
    largest: int,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """softmax(scale * q k') v of dequantized integers; the probabilities are quantized, too, once a row is complete.

    query: uint8 [batch, heads, queries, width]; key: uint8 [batch, heads, keys, width]; value: uint8 [batch, heads,
    keys, value width]. scales: float32 [4] of query, key, probabilities and value; zero_points: integers [4] in 0..255,
    in the same order. smallest, largest: bounds of the probabilities' integers, within 0..255.

    [batch, heads, queries, value width], in float32 unless told otherwise, a transposed view of contiguous [batch,
    queries, heads, value width]. By plain torch where there is no C++ compiler, with one warning. Raises BackendError
    on anything else than these.
    """
    given = (query, key, value, scales, zero_points, scale, smallest, largest)
    _require(given)
    kernel = kernel_if_any(_FUNCTION)
    return (_run(kernel, given).output if kernel else _reference(*given)).to(output_dtype or torch.float32)


@torch.library.impl(_library, "int8_attention", "Meta")
def _fake_int8_attention(
    query: Tensor, key: Tensor, value: Tensor, *rest: Any, output_dtype: torch.dtype | None = None
) -> Tensor:
    batch, heads, queries, _ = query.shape
    dtype = rest[5] if len(rest) > 5 else output_dtype
    return query.new_empty((batch, queries, heads, value.shape[-1]), dtype=dtype or torch.float32).transpose(1, 2)


def attention_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    scale: float,
    smallest: int,
    largest: int,
    *,
    portable: bool = False,
) -> AttentionParts:
    """What `int8_attention` goes through, by the very code that it runs; errors as there.

    portable: by the code for CPUs without dot products of bytes.
    """
    given = (query, key, value, scales, zero_points, scale, smallest, largest)
    _require(given)
    kernel = kernel_if_any(_FUNCTION)
    return _run(kernel, given, parts=True, portable=portable) if kernel else reference_parts(*given)


def reference_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    scale: float,
    smallest: int,
    largest: int,
) -> AttentionParts:
    """The same in plain torch: sums of integers are exact, the softmax is torch's; errors as of `int8_attention`."""
    _require((query, key, value, scales, zero_points, scale, smallest, largest))
    s_query, s_key, s_probability, s_value = scales.unbind()
    z_query, z_key, z_probability, z_value = zero_points.tolist()
    factor = (s_query.double() * s_key.double() * scale).float()
    integers = _exact_product(query, z_query, key.transpose(-2, -1), z_key)
    scores = integers.float() * factor
    levels = (scores.softmax(-1) * (1 / s_probability)).round() + z_probability
    probabilities = levels.clamp(smallest, largest).to(torch.uint8)
    sums = _exact_product(probabilities, z_probability, value, z_value)
    return AttentionParts(scores, probabilities, sums.float() * (s_probability * s_value))


def _run(kernel: Kernel, given: _Given, *, parts: bool = False, portable: bool = False) -> AttentionParts:
    """Call the kernel; without `parts`, scores and probabilities are empty."""
    query, key, value, scales, zero_points, scale, smallest, largest = given
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    batch, heads, queries, width = query.shape
    keys, value_width = value.shape[2:]
    shape = (batch, heads, queries, keys) if parts else (0,)
    scores, probabilities = torch.empty(shape), torch.empty(shape, dtype=torch.uint8)
    output = torch.empty(batch, queries, heads, value_width)
    arguments = _Arguments(
        **{name: x.data_ptr() for name, x in (("query", query), ("key", key), ("value", value), ("output", output))},
        **{name: x.data_ptr() for name, x in (("scores", scores), ("probabilities", probabilities)) if parts},
        **dict(batch=batch, heads=heads, queries=queries, keys=keys, width=width, value_width=value_width),
        **{f"{name}_stride": x.stride()[:3] for name, x in (("query", query), ("key", key), ("value", value))},
        scales=tuple(scales.tolist()),
        zero_points=tuple(zero_points.tolist()),
        **dict(scale=scale, smallest=smallest, largest=largest, threads=torch.get_num_threads(), portable=portable),
    )
    if kernel(ctypes.byref(arguments)):
        raise MemoryError(f"{_NAME}: not enough memory for {batch * heads} heads of {keys} keys")
    return AttentionParts(scores, probabilities, output.transpose(1, 2))


def _reference(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    """The output of `reference_parts`, some queries at a time."""
    batch, heads, queries, _ = query.shape
    output = torch.empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)
    rows = max(CHUNK // (heads * key.shape[2]), 1)
    for sample in range(batch):
        of_sample = slice(sample, sample + 1)
        for start in range(0, queries, rows):
            at = (of_sample, slice(None), slice(start, start + rows))
            output[at] = reference_parts(query[at], key[of_sample], value[of_sample], *rest).output
    return output


def _exact_product(x: Tensor, x_zero_point: int, y: Tensor, y_zero_point: int) -> Tensor:
    """Product of matrices of integers less their zero points, in floats that hold every sum."""
    dtype = torch.float32 if x.shape[-1] * 255**2 <= 2**24 else torch.float64
    return (x.to(dtype) - x_zero_point) @ (y.to(dtype) - y_zero_point)


def _require(given: _Given) -> None:
    """Raises BackendError on what the kernel cannot take."""
    query, key, value, scales, zero_points, scale, smallest, largest = given
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dtype != torch.uint8 or x.dim() != 4:
            raise _error(f"{name} is {x.dtype} {list(x.shape)}, not uint8 [batch, heads, rows, width]")
    shapes = f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
    if not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        raise _error(f"batches and heads differ: {shapes}")
    if query.shape[3] != key.shape[3] or key.shape[2] != value.shape[2]:
        raise _error(f"widths of query and key, or numbers of keys and values, differ: {shapes}")
    if not (0 < key.shape[2] <= LARGEST_KEYS and 0 < key.shape[3] <= LARGEST_WIDTH and value.shape[3] > 0):
        raise _error(f"1 to {LARGEST_KEYS} keys of a width of 1 to {LARGEST_WIDTH} can be summed up: {shapes}")
    if scales.dtype != torch.float32 or scales.shape != (4,):
        raise _error(f"scales are {scales.dtype} {list(scales.shape)}, not float32 [4]")
    if zero_points.dtype.is_floating_point or zero_points.shape != (4,):
        raise _error(f"zero points are {zero_points.dtype} {list(zero_points.shape)}, not integers [4]")
    if not all(torch.finfo(torch.float32).tiny <= x < math.inf for x in (*scales.tolist(), scale)):
        raise _error(f"scales {scales.tolist()} and {scale} should be positive and finite")
    if not all(0 <= x <= 255 for x in zero_points.tolist()):
        raise _error(f"zero points {zero_points.tolist()} should be in 0..255")
    if not 0 <= smallest <= largest <= 255:
        raise _error(f"integers from {smallest} to {largest} should be within 0..255")


def _error(message: str) -> BackendError:
    return BackendError(message, where=_NAME)


INT8_ATTENTION = torch.ops.dmq.int8_attention.default
"""The operator, as graphs call it."""
