"""Images to features: the extractors that scores are taken on, Inception or a classifier that comes with dmq."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from dmq_fx.errors import DmqError, did_you_mean
from dmq_fx.models.fingerprint import fingerprint
from dmq_fx.options import parse_device
from dmq_fx.quality.classifier import SmallResNet, load_classifier
from dmq_fx.quality.inception import SPATIAL_CHANNELS
from dmq_fx.quality.inception_weights import load_inception
from dmq_fx.quality.metric_names import EMBEDDED, EXTRACTORS, INCEPTION

_SLACK = 1e-3
"""How far a float image may lie outside of 0..1: rounding of a sampler, not another range."""

_CHUNK = {INCEPTION: 32}
"""Images that a network is given at once: bounds its memory, whatever the caller's batch."""


@dataclass(frozen=True)
class Features:
    """What an extractor says of n images, in float32 on the CPU.

    pooled: [n, d], of Fréchet distances, precision and recall. spatial: [n, s], the first 7 channels of a map inside,
    of the spatial Fréchet distance. logits: [n, k], of the inception score; Inception's without its last layer's
    bias.
    """

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class _Output(Protocol):
    @property
    def pooled(self) -> Tensor: ...
    @property
    def spatial(self) -> Tensor: ...
    @property
    def logits(self) -> Tensor: ...


class FeatureExtractor:
    """A network in front of which images are brought to one form.

    name: what metrics and files call it. digest: SHA-256 of its weights, and of whether it mirrors; features of two
    digests are not compared. channels, size: of the images it reads; size None for any. network: gives `pooled` [n, d],
    `spatial` [n, c, h, w] and `logits` [n, k] for what `prepare` makes of uint8 images [n, channels, height, width].
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        channels: int,
        size: int | None,
        prepare: Callable[[Tensor], Tensor],
        device: str | torch.device = "cpu",
    ) -> None:
        self.name = name
        self.channels = channels
        self.size = size
        self.device = parse_device(device)
        self.digest = _digest(network)
        self._network = network.to(self.device).eval()
        self._prepare = prepare

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of images [n, 1 or 3, height, width], uint8 or floats in 0..1.

        Floats are rounded to 8 bits first: scores are of the images as they would be saved. Grey images are repeated
        for an extractor of colour. Raises DmqError for images that this extractor does not read.
        """
        pixels = self._check(to_uint8(images))
        parts: list[_Output] = []
        for chunk in pixels.split(_CHUNK.get(self.name, 256)):
            # TensorFloat32, which convolutions on a GPU take by themselves, would change the third digit of features.
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                parts.append(self._network(self._prepare(chunk.to(self.device))))
        return Features(
            _join([part.pooled for part in parts]),
            _join([part.spatial[:, :SPATIAL_CHANNELS] for part in parts]),
            _join([part.logits for part in parts]),
        )

    def _check(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        if self.size is not None and (height, width) != (self.size, self.size):
            raise DmqError(
                f"the feature extractor {self.name!r} reads images of {self.size}x{self.size} pixels, and received "
                f"{height}x{width}",
                hint="take metrics on Inception (`fid`, `is`, ...), which reads any size",
            )
        if channels == self.channels:
            return images
        if channels == 1:
            return images.expand(-1, self.channels, -1, -1)
        raise DmqError(
            f"the feature extractor {self.name!r} reads grey images, and received images in colour",
            hint="take metrics on an extractor of colour images: `fd-cifar10`, `fid`",
        )


def _digest(network: nn.Module) -> str:
    """SHA-256 of the weights; a classifier that mirrors gives other features of the same ones."""
    digest = fingerprint(network)
    mirrors = isinstance(network, SmallResNet) and network.config.mirror
    return hashlib.sha256(f"{digest} mirror".encode()).hexdigest() if mirrors else digest


def load_extractor(name: str, path: str | Path | None = None, device: str | torch.device = "cpu") -> FeatureExtractor:
    """The extractor called `name`: `inception`, or a classifier that comes with dmq (`mnist`, `cifar10`).

    path: Inception's published weights; without it they come from torch.hub's cache or the network. Raises DmqError
    for an unknown name or a path beside a classifier of dmq's own, and ModelError for weights that cannot be had.
    """
    if name == INCEPTION:
        return FeatureExtractor(
            name, load_inception(path), channels=3, size=None, prepare=lambda images: images.float(), device=device
        )
    if name not in EMBEDDED:
        hint = did_you_mean(name, EXTRACTORS) or f"known: {', '.join(EXTRACTORS)}"
        raise DmqError(f"unknown feature extractor {name!r}", hint=hint)
    if path is not None:
        message = f"the feature extractor {name!r} comes with dmq and takes no file"
        raise DmqError(message, where=str(path), hint="a file is for Inception: metrics `fid`, `sfid`, `is`, ...")
    network = load_classifier(Path(str(resources.files("dmq_fx.assets"))) / f"classifier-{name}")
    config = network.config
    return FeatureExtractor(
        name, network, channels=config.channels, size=config.size, prepare=to_signed_unit, device=device
    )


def to_uint8(images: Tensor) -> Tensor:
    """Images [n, 1 or 3, height, width] as the 8 bits that a PNG of them would hold: rounded half to even.

    Raises DmqError for another shape, and for floats that are not finite or not in 0..1.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        message = f"expected images [n, 1 or 3, height, width], and received {list(images.shape)}"
        raise DmqError(message, hint="scores are of images; a model whose latents are not decoded has none")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DmqError(f"images are uint8 or floats in 0..1, and received {images.dtype}")
    low, high = (float(end) for end in images.detach().float().aminmax())
    if not -_SLACK <= low <= high <= 1 + _SLACK:  # as a NaN makes false
        raise DmqError(f"float images have values in 0..1, and received {low:g} to {high:g}")
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_signed_unit(images: Tensor) -> Tensor:
    """uint8 images as the floats in -1..1 that dmq's classifiers were trained on."""
    return images.float() / 127.5 - 1


def _join(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1).float().cpu() for part in parts])
