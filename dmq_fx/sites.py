"""Sites: the places of a traced graph that can be quantized."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

OPS = ("conv1d", "conv2d", "conv3d", "linear", "attention", "matmul")
"""What a site computes. `attention` is a fused scaled dot product, `matmul` a product of two activations."""

HALVES = ("decoder", "encoder")
"""The two sites that one which reads a concat is split into (`split`)."""

PRODUCTS = ("scores", "values")
"""The two products of an attention that is written out (`split_attention`)."""

ROLES = (
    "first",
    "last",
    "skip_concat",
    "skip_connection",
    "time_embedding",
    "conditioning",
    "attention_qkv",
    "attention_out",
    "attention_matmul",
    "feed_forward",
    "upsample",
    "downsample",
    "modulation",
    "block_in",
    "block_out",
)
"""What a site does in a diffusion model, found from the data flow (docs/design.md, "Trace")."""


def part_of(name: str, splits: Collection[str]) -> str | None:
    """Which part of a split site the site of this name is, such as `decoder` or `scores`; None if it is none."""
    whole, _, part = name.rpartition(".")
    return part if whole in splits and part in (*HALVES, *PRODUCTS) else None


@dataclass(frozen=True)
class Site:
    """A place in the graph that can be quantized.

    name: fully qualified module name; a module called more than once gets `@1`, `@2` for the later calls.
    node: name of its call in the traced graph.
    operands: positions in the node's arguments that are activations (a convolution has one, attention three).
    weight, bias: fully qualified parameter names; None for products of activations.
    weight_shape: `[out, in / groups, ...]`.
    macs: multiply-accumulates for one sample at the traced size.
    pads: the op pads its input with zeros, so a range must include zero.
    split: channels of the decoder half if the input derives from a decoder/encoder concat, else None.
    """

    name: str
    op: str
    node: str
    roles: tuple[str, ...]
    operands: tuple[int, ...]
    weight: str | None
    bias: str | None
    weight_shape: tuple[int, ...] | None
    macs: int
    pads: bool
    split: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Weight shape, or () for a product of activations."""
        return self.weight_shape or ()

    @property
    def parameters(self) -> int:
        """Number of weights (bias not counted)."""
        count = 1 if self.weight_shape else 0
        for size in self.shape:
            count *= size
        return count
