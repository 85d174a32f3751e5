"""The Inception-v3 that FID is defined on: TensorFlow's graph of 2015-12-05, for its published PyTorch weights.

It differs from the Inception-v3 of arXiv:1512.00567 and of image libraries: averages do not count the padding, the
last block pools by the maximum, there are 1008 classes, and images are resized to 299 pixels as TensorFlow 1 did.
Modules have the names of the published state dict (`Mixed_6d.branch7x7dbl_3.conv.weight`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 299
CLASSES = 1008
SPATIAL_CHANNELS = 7
"""Channels of the 17x17 map that sFID is taken on (arXiv:2103.03841, as in ADM's evaluator): 2023 features."""


@dataclass(frozen=True)
class Conv:
    """A convolution of a branch. With stride 1 it keeps the map's size, with stride 2 nothing is padded."""

    name: str
    outputs: int
    kernel: tuple[int, int]
    stride: int = 1


Fork = tuple[Conv, Conv]
"""Two convolutions of one map, side by side."""

Branch = tuple[Conv | Fork | str, ...]
"""Steps one after the other; a text is a pooling."""

AVERAGE, MAXIMUM, HALVE = "average", "maximum", "halve"


def _block_a(pooled: int) -> tuple[Branch, ...]:
    """35x35."""
    return (
        (Conv("branch1x1", 64, (1, 1)),),
        (Conv("branch5x5_1", 48, (1, 1)), Conv("branch5x5_2", 64, (5, 5))),
        (
            Conv("branch3x3dbl_1", 64, (1, 1)),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        (AVERAGE, Conv("branch_pool", pooled, (1, 1))),
    )


def _block_b() -> tuple[Branch, ...]:
    """35x35 to 17x17."""
    return (
        (Conv("branch3x3", 384, (3, 3), 2),),
        (
            Conv("branch3x3dbl_1", 64, (1, 1)),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2),
        ),
        (HALVE,),
    )


def _block_c(inner: int) -> tuple[Branch, ...]:
    """17x17, with 7x7 convolutions in two factors."""
    return (
        (Conv("branch1x1", 192, (1, 1)),),
        (
            Conv("branch7x7_1", inner, (1, 1)),
            Conv("branch7x7_2", inner, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv("branch7x7dbl_1", inner, (1, 1)),
            Conv("branch7x7dbl_2", inner, (7, 1)),
            Conv("branch7x7dbl_3", inner, (1, 7)),
            Conv("branch7x7dbl_4", inner, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (AVERAGE, Conv("branch_pool", 192, (1, 1))),
    )


def _block_d() -> tuple[Branch, ...]:
    """17x17 to 8x8."""
    return (
        (Conv("branch3x3_1", 192, (1, 1)), Conv("branch3x3_2", 320, (3, 3), 2)),
        (
            Conv("branch7x7x3_1", 192, (1, 1)),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        (HALVE,),
    )


def _block_e(pooling: str) -> tuple[Branch, ...]:
    """8x8."""
    return (
        (Conv("branch1x1", 320, (1, 1)),),
        (
            Conv("branch3x3_1", 384, (1, 1)),
            (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
        ),
        (
            Conv("branch3x3dbl_1", 448, (1, 1)),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pooling, Conv("branch_pool", 192, (1, 1))),
    )


class ConvUnit(nn.Module):
    """Convolution, normalization and ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padding: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches of one map, concatenated along the channels in their order."""

    def __init__(self, inputs: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self.branches = branches
        self.outputs = sum(self._add(inputs, branch) for branch in branches)

    def _add(self, channels: int, branch: Branch) -> int:
        """Make the modules of a branch; returns how many channels it ends with."""
        for step in branch:
            if isinstance(step, str):
                continue
            outputs = 0
            for conv in _convs(step):
                height, width = conv.kernel
                padding = (height // 2, width // 2) if conv.stride == 1 else (0, 0)
                self.add_module(conv.name, ConvUnit(channels, conv.outputs, conv.kernel, conv.stride, padding))
                outputs += conv.outputs
            channels = outputs
        return channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._run(x, branch) for branch in self.branches], dim=1)

    def _run(self, x: Tensor, branch: Branch) -> Tensor:
        for step in branch:
            if isinstance(step, str):
                x = _pool(x, step)
            else:
                x = torch.cat([self.get_submodule(conv.name)(x) for conv in _convs(step)], dim=1)
        return x


class InceptionOutput(NamedTuple):
    """pooled: [n, 2048]. spatial: [n, 7, 17, 17]. logits: [n, 1008], without the last layer's bias."""

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class FidInception(nn.Module):
    """Inception-v3 as FID, sFID and the inception score take it; 23,850,960 parameters.

    Logits are those without the bias, which the published inception scores of arXiv:1606.03498's code are taken on
    (`logits_unbiased` of torch-fidelity). spatial is the ReLU output `mixed_6/conv` of the TensorFlow graph: the 1x1
    branch of Mixed_6d, which its block's output begins with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, (3, 3))
        self.Mixed_5b = Mixed(192, _block_a(32))
        self.Mixed_5c = Mixed(256, _block_a(64))
        self.Mixed_5d = Mixed(288, _block_a(64))
        self.Mixed_6a = Mixed(288, _block_b())
        self.Mixed_6b = Mixed(768, _block_c(128))
        self.Mixed_6c = Mixed(768, _block_c(160))
        self.Mixed_6d = Mixed(768, _block_c(160))
        self.Mixed_6e = Mixed(768, _block_c(192))
        self.Mixed_7a = Mixed(768, _block_d())
        self.Mixed_7b = Mixed(1280, _block_e(AVERAGE))
        self.Mixed_7c = Mixed(2048, _block_e(MAXIMUM))
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, images: Tensor) -> InceptionOutput:
        """images: [n, 3, height, width], floats in 0..255, of any size."""
        x = (resize_like_tensorflow1(images, SIZE, SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = _pool(x, HALVE)
        x = _pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), HALVE)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))
        spatial = x[:, :SPATIAL_CHANNELS]
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pooled = x.mean((2, 3))
        return InceptionOutput(pooled, spatial, pooled @ self.fc.weight.T)


def resize_like_tensorflow1(images: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize of [n, channels, h, w] as TensorFlow 1's: pixel i of `height` lies at i * h / height.

    Half a pixel off, and nothing is averaged where it shrinks; but published FIDs are taken with it.
    """
    return _interpolate(_interpolate(images, 3, width), 2, height)


def _interpolate(x: Tensor, dim: int, size: int) -> Tensor:
    length = x.shape[dim]
    step = torch.tensor(length / size, dtype=torch.float32, device=x.device)
    position = torch.arange(size, device=x.device) * step
    low = position.long()
    weight = (position - low).to(x.dtype).reshape([-1 if axis == dim else 1 for axis in range(x.dim())])
    below, above = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(length - 1))
    return below + (above - below) * weight


def _pool(x: Tensor, kind: str) -> Tensor:
    if kind == AVERAGE:
        return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    if kind == MAXIMUM:
        return functional.max_pool2d(x, 3, stride=1, padding=1)
    return functional.max_pool2d(x, 3, stride=2)


def _convs(step: Conv | Fork) -> Fork | tuple[Conv]:
    return (step,) if isinstance(step, Conv) else cast(Fork, step)
