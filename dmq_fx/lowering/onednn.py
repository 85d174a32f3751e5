"""oneDNN's int8 convolution and matrix product as nodes of a graph.

The operators are those that torch's own lowering ends at (`onednn::qconv_pointwise`, `qlinear_pointwise`), called by
name so that no pattern can miss. Activations are uint8, weights int8 without a zero point, and sums int32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch._inductor.fx_passes.mkldnn_fusion
from torch import Tensor, fx

from dmq_fx.lowering.int8_attention import INT8_ATTENTION
from dmq_fx.lowering.shifted import SHIFTED

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


PREPACK = (onednn.qconv_prepack.default, onednn.qlinear_prepack.default)
"""Operators that lay weights out for the kernels."""

KERNEL_CALLS = (
    onednn.qconv_pointwise.default,
    onednn.qconv_pointwise.tensor,
    onednn.qlinear_pointwise.default,
    onednn.qlinear_pointwise.tensor,
    *SHIFTED,
    INT8_ATTENTION,
)
"""Every operator that a site's kernel is called by."""


def shape_to_pack_for(node: fx.Node, channels: int, padded: tuple[int, ...]) -> list[int] | None:
    """Shape of an image that a convolution reads, for a batch of two; None if it is not known, or no image.

    padded: pixels that the image has been given on each side already. Weights are laid out for it: those of another
    size of image may have to be laid out anew in every call, which can take several times as long as all the rest. The
    batch changes nothing but for images of few pixels.
    """
    source = node.args[0]
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    if value is None or value.dim() != 4:
        return None
    sizes = [size if isinstance(size, int) else size.node.hint for size in value.shape[2:]]
    if any(size is None for size in sizes):
        return None
    return [2, channels, *(int(size) + 2 * more for size, more in zip(sizes, padded, strict=True))]
