"""oneDNN's int8 convolution and matrix product as nodes of a graph.

The operators are those that torch's own lowering ends at (`onednn::qconv_pointwise`, `qlinear_pointwise`), called by
name so that no pattern can miss. Activations are uint8, weights int8 without a zero point, and sums int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch._inductor.fx_passes.mkldnn_fusion
from torch import Tensor

aten = torch.ops.aten
onednn = torch.ops.onednn


@torch.library.register_fake("onednn::qconv_prepack")
def _fake_conv_prepack(
    weight: Tensor,
    w_scales: Tensor,
    x_scale: float,
    x_zp: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    x_shape: Sequence[int] | None = None,
) -> Tensor:
    """The operator has none: shape and type of packed weights, without which nothing can be exported."""
    return weight.new_empty(weight.shape)


@torch.library.register_fake("onednn::qlinear_prepack")
def _fake_linear_prepack(weight: Tensor, x_shape: Sequence[int] | None) -> Tensor:
    """As above; packed weights of a linear are [in, out]."""
    return weight.new_empty((weight.shape[1], weight.shape[0]))


_library = torch.library.Library("dmq", "DEF")
_library.define(
    "qconv_shifted(Tensor x, Tensor x_scale, Tensor x_zero_point, Tensor weight, Tensor w_scale, Tensor w_zero_point, "
    "Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, ScalarType output_dtype) -> Tensor"
)
_library.define(
    "qlinear_shifted(Tensor x, Tensor x_scale, Tensor x_zero_point, Tensor weight, Tensor w_scale, "
    "Tensor w_zero_point, Tensor? bias, ScalarType output_dtype) -> Tensor"
)


@torch.library.impl(_library, "qconv_shifted", "CPU")
def qconv_shifted(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    output_dtype: torch.dtype,
) -> Tensor:
    """oneDNN's int8 convolution with weights that are made in every call, and so are packed in every call.

    One operator for both, as Inductor would take the memory of packed weights for ordinary memory.
    """
    packed = onednn.qconv_prepack(weight, w_scale, 1.0, 0, stride, padding, dilation, groups, list(x.shape))
    head = (x, x_scale, x_zero_point, packed, w_scale, w_zero_point, bias)
    return onednn.qconv_pointwise.tensor(*head, stride, padding, dilation, groups, 1.0, 0, output_dtype, "none", [], "")


@torch.library.impl(_library, "qlinear_shifted", "CPU")
def qlinear_shifted(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    bias: Tensor | None,
    output_dtype: torch.dtype,
) -> Tensor:
    """oneDNN's int8 matrix product with weights that are made in every call."""
    packed = onednn.qlinear_prepack(weight, None)
    head = (x, x_scale, x_zero_point, packed, w_scale, w_zero_point, bias)
    return onednn.qlinear_pointwise.tensor(*head, 1.0, 0, output_dtype, "none", [], "")


@torch.library.impl(_library, "qconv_shifted", "Meta")
def _fake_qconv_shifted(x: Tensor, x_scale: Tensor, x_zero_point: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    stride, padding, dilation, groups, dtype = rest[-5:]
    real = aten.convolution(
        x.to(dtype), weight.to(dtype), None, stride, padding, dilation, False, [0] * len(stride), groups
    )
    return real.contiguous(memory_format=torch.channels_last) if real.dim() == 4 else real


@torch.library.impl(_library, "qlinear_shifted", "Meta")
def _fake_qlinear_shifted(x: Tensor, x_scale: Tensor, x_zero_point: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=rest[-1])


PREPACK = (onednn.qconv_prepack.default, onednn.qlinear_prepack.default)
"""Operators that lay weights out for the kernels."""

SHIFTED = (torch.ops.dmq.qconv_shifted.default, torch.ops.dmq.qlinear_shifted.default)
KERNEL_CALLS = (
    onednn.qconv_pointwise.default,
    onednn.qconv_pointwise.tensor,
    onednn.qlinear_pointwise.default,
    onednn.qlinear_pointwise.tensor,
    *SHIFTED,
)
"""Every operator that a site's kernel is called by."""


def multiplies_exactly() -> bool:
    """Whether int8 products are summed without saturation here: CPUs before VNNI add pairs in 16 bits."""
    x = torch.full((1, 64, 1, 1), 255, dtype=torch.uint8)
    w = torch.full((16, 64, 1, 1), 127, dtype=torch.int8)
    one, zero = torch.ones(16), torch.zeros(16, dtype=torch.int64)
    spread: Any = ([1, 1], [0, 0], [1, 1], 1)
    packed = onednn.qconv_prepack(w, one, 1.0, 0, *spread, list(x.shape))
    found = onednn.qconv_pointwise(x, 1.0, 0, packed, one, zero, None, *spread, 1.0, 0, torch.float32, "none", [], "")
    return bool((found == 64 * 255 * 127).all())
