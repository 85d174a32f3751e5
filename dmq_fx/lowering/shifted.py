"""oneDNN's int8 kernels with weights that are made in every call, as operators of this project.

Native code calls them by name: they are there before it is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
onednn = torch.ops.onednn

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


SHIFTED = (torch.ops.dmq.qconv_shifted.default, torch.ops.dmq.qlinear_shifted.default)
