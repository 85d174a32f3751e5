"""Group norm, SiLU and the quantization behind them in two passes over an image, as an operator of this project.

The kernel is norm_quantize.cpp. Native code calls it as a C function (shims), graphs by this operator.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dmq_fx.errors import BackendError
from dmq_fx.lowering.own_kernels import Kernel, kernel_if_any

_NAME, _FUNCTION = "dmq::norm_quantize", "dmq_norm_quantize"

_library = torch.library.Library("dmq", "FRAGMENT")
_library.define(
    "norm_quantize(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps, bool silu, Tensor reciprocal, "
    "Tensor zero_point, int low, int high, int[] padding) -> Tensor",
    tags=(torch.Tag.flexible_layout,),  # it reads images as they lie: nobody should lay them out otherwise first
)


_Given = tuple[Tensor, Tensor | None, Tensor | None, int, float, bool, Tensor, Tensor, int, int, Sequence[int]]
"""Arguments of the operator."""


class _Arguments(ctypes.Structure):
    """`NormQuantize` of norm_quantize.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "reciprocal", "output")),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "groups")),
        ("padding", ctypes.c_int64 * 2),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("zero_point", "low", "high", "by_channel")),
        *((name, ctypes.c_int32) for name in ("silu", "bfloat16", "threads", "portable")),
    ]


@torch.library.impl(_library, "norm_quantize", "CPU")
def norm_quantize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    reciprocal: Tensor,
    zero_point: Tensor,
    low: int,
    high: int,
    padding: Sequence[int],
    *,
    portable: bool = False,
) -> Tensor:
    """clamp(round(y * reciprocal) + zero_point, low, high), halves to even, of y: x after a group norm, padded with 0.

    x: [batch, channels, height, width] or [batch, channels, pixels], float32 or bfloat16; read as it lies where
    channels are last in memory. weight, bias: float32 [channels], of the norm. silu: whether y is what SiLU gives for
    that. reciprocal: float32, one number or [channels]; zero_point: one integer in 0..255. low, high: bounds of the
    integers, within 0..255. padding: pixels above and below, and left and right; [] is none.

    uint8, with channels last in memory. By plain torch where there is no C++ compiler, with one warning. portable: by
    the code for CPUs without AVX-512. Raises BackendError on anything else than these.
    """
    given = (x, weight, bias, groups, eps, silu, reciprocal, zero_point, low, high, padding)
    _require(given)
    kernel = kernel_if_any(_FUNCTION)
    return _run(kernel, given, portable=portable) if kernel else reference(*given)


@torch.library.impl(_library, "norm_quantize", "Meta")
def _fake_norm_quantize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    reciprocal: Tensor,
    zero_point: Tensor,
    low: int,
    high: int,
    padding: Sequence[int],
) -> Tensor:
    return _empty(x, padding)


def reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    reciprocal: Tensor,
    zero_point: Tensor,
    low: int,
    high: int,
    padding: Sequence[int],
) -> Tensor:
    """The same in plain torch, in float32; errors as of `norm_quantize`."""
    _require((x, weight, bias, groups, eps, silu, reciprocal, zero_point, low, high, padding))
    y = torch.group_norm(x.float(), groups, weight, bias, eps)
    y = F.silu(y) if silu else y
    if any(padding):
        y = F.pad(y, (padding[1], padding[1], padding[0], padding[0]))
    by_channel = reciprocal.reshape(-1, *[1] * (x.dim() - 2))
    levels = (y * by_channel).round() + zero_point.reshape(())
    return _empty(x, padding).copy_(levels.clamp(low, high))


def _empty(x: Tensor, padding: Sequence[int]) -> Tensor:
    """For the integers of x."""
    batch, channels, *pixels = x.shape
    if padding:
        pixels = [size + 2 * more for size, more in zip(pixels, padding, strict=True)]
    rows = pixels[-1] * channels
    image = rows * pixels[0] if len(pixels) == 2 else rows
    strides = (image, 1, *((rows, channels) if len(pixels) == 2 else (channels,)))
    return torch.empty_strided((batch, channels, *pixels), strides, dtype=torch.uint8, device=x.device)


def _run(kernel: Kernel, given: _Given, *, portable: bool) -> Tensor:
    x, weight, bias, groups, eps, silu, reciprocal, zero_point, low, high, padding = given
    output = _empty(x, padding)
    batch, channels, *pixels = x.shape
    if not batch:
        return output
    if not (len(pixels) == 2 and x.is_contiguous(memory_format=torch.channels_last)):
        x = x.movedim(1, -1).contiguous()
    weight, bias = (None if values is None else values.contiguous() for values in (weight, bias))
    reciprocal = reciprocal.contiguous()
    arguments = _Arguments(
        x.data_ptr(),
        None if weight is None else weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        reciprocal.data_ptr(),
        output.data_ptr(),
        *(batch, 1 if len(pixels) == 1 else pixels[0], pixels[-1], channels, groups),
        tuple(padding) if padding else (0, 0),
        eps,
        *(int(zero_point), low, high, reciprocal.numel() > 1),
        *(silu, x.dtype == torch.bfloat16, torch.get_num_threads(), portable),
    )
    if kernel(ctypes.byref(arguments)):
        raise MemoryError(f"{_NAME}: not enough memory for {channels} channels of {pixels} pixels")
    return output


def _require(given: _Given) -> None:
    """Raises BackendError on what the kernel cannot take."""
    x, weight, bias, groups, _, _, reciprocal, zero_point, low, high, padding = given
    shape = x.shape
    if x.dtype not in (torch.float32, torch.bfloat16) or len(shape) not in (3, 4):
        raise _error(f"x is {x.dtype} {list(shape)}, not float32 or bfloat16 [batch, channels, height, width]")
    channels = shape[1]
    if min(shape[1:]) < 1:
        raise _error(f"x {list(shape)} has no values to normalize")
    if groups < 1 or channels % groups:
        raise _error(f"{channels} channels are not {groups} groups of one width")
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None and (values.dtype != torch.float32 or values.shape != (channels,)):
            raise _error(f"{name} is {values.dtype} {list(values.shape)}, not float32 [{channels}]")
    if reciprocal.dtype != torch.float32 or not (reciprocal.numel() == 1 or reciprocal.shape == (channels,)):
        raise _error(f"reciprocal is {reciprocal.dtype} {list(reciprocal.shape)}, not one float32 or [{channels}]")
    if zero_point.dtype.is_floating_point or zero_point.numel() != 1:
        raise _error(f"zero point is {zero_point.dtype} {list(zero_point.shape)}, not one integer")
    if not 0 <= int(zero_point) <= 255:
        raise _error(f"zero point {int(zero_point)} should be in 0..255")
    if not 0 <= low <= high <= 255:
        raise _error(f"integers from {low} to {high} should be within 0..255")
    if padding and (len(padding) != 2 or len(shape) != 4 or min(padding) < 0):
        raise _error(f"padding {list(padding)} of an image {list(shape[2:])} should be [], or of height and width")


def _error(message: str) -> BackendError:
    return BackendError(message, where=_NAME)


NORM_QUANTIZE = torch.ops.dmq.norm_quantize.default
"""The operator, as graphs call it."""
