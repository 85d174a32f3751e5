"""The images that a model is compared with (`--reference`): a folder, an archive, or statistics of earlier ones."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dmq_fx.errors import DmqError
from dmq_fx.quality.features import FeatureExtractor
from dmq_fx.quality.image_files import image_files
from dmq_fx.quality.statistics import (
    KEEP_FEATURES,
    FeatureStatistics,
    Progress,
    collect,
    load_statistics,
)

_GREY = ("1", "L", "LA")
_DIGIT, _CANVAS = (28, 28), (32, 32)


def reference_statistics(
    reference: str | Path,
    extractor: FeatureExtractor,
    *,
    subset: str | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 64,
    keep_features: int = KEEP_FEATURES,
    progress: Progress = lambda what, done, total: None,
) -> FeatureStatistics:
    """Statistics of a folder or archive of images under `extractor`, or the stored ones of a `.safetensors` file.

    subset: the folder (`test`) inside that is meant. size: (height, width) of the model's images, which those of the
    reference are brought to (see `fit`); an extractor of one size takes precedence. Raises DmqError for a reference
    that cannot be read, has no image, or is statistics of another extractor.
    """
    path = Path(reference)
    if path.suffix == ".safetensors":
        if subset:
            raise DmqError(f"stored statistics have no subset {subset!r}", where=str(path), hint="leave the subset out")
        found = load_statistics(path, extractor)
        if size is not None and extractor.size is None and found.size != size:
            made = "their own size" if found.size is None else f"{found.size[0]}x{found.size[1]}"
            message = f"the statistics are of images at {made}, and the model's are of {size[0]}x{size[1]}"
            square = size[0] == size[1]
            hint = f"make them again with --size {size[0]}" if square else "give the images themselves"
            raise DmqError(message, where=str(path), hint=hint)
        return found
    if extractor.size is not None:
        size = (extractor.size, extractor.size)
    batches = image_batches(path, channels=extractor.channels, size=size, subset=subset, batch=batch)
    found = collect(
        extractor,
        batches,
        reference_name(path, subset),
        keep_features=keep_features,
        keep_logits=0,  # an inception score needs no reference
        progress=progress,
    )
    return replace(found, size=size)


def reference_name(reference: str | Path, subset: str | None = None) -> str:
    """What a reference is called in files: the last part of its path and its subset (`mnist.tar.xz/test`)."""
    name = Path(os.path.abspath(reference)).name or "images"  # noqa: PTH100 - resolve() would follow a link
    return f"{name}/{subset}" if subset else name


def image_batches(
    reference: str | Path,
    *,
    channels: int,
    size: tuple[int, int] | None = None,
    subset: str | None = None,
    batch: int = 64,
) -> Iterator[Tensor]:
    """Yield a folder's or archive's images as uint8 [at most batch, channels, height, width], read as asked for.

    size: (height, width) that every image is brought to. Without one each keeps its own, and a batch ends where the
    size changes. Raises DmqError, among others for an image that cannot be decoded.
    """
    pending: list[Tensor] = []
    for name, data in image_files(reference, subset):
        pixels = _decode(data, channels, size, where=f"{reference}: {name}")
        if pending and pending[0].shape != pixels.shape:
            yield torch.stack(pending)
            pending = []
        pending.append(pixels)
        if len(pending) == batch:
            yield torch.stack(pending)
            pending = []
    if pending:
        yield torch.stack(pending)


def fit(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The image at (height, width) `size`, as dmq's models and classifiers were given theirs.

    A grey image of 28x28 (MNIST) where 32x32 are wanted is padded with black. Any other is cropped around its centre
    to the wanted aspect and resized with Pillow's Lanczos filter, which averages where it shrinks.
    """
    if size is None or image.size == (size[1], size[0]):
        return image
    if image.size == _DIGIT and size == _CANVAS and _is_grey(image):
        return ImageOps.expand(image, border=2, fill=0)
    return ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.LANCZOS)


def _decode(data: bytes, channels: int, size: tuple[int, int] | None, *, where: str) -> Tensor:
    try:
        image = Image.open(io.BytesIO(data))
        mode = image.mode
        image = image.convert("L" if mode in _GREY else "RGB")
    except Exception as error:  # pillow raises many kinds for what is damaged
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f": {reason}"
        hint = "copy it again, or leave it out of the reference"
        raise DmqError(f"the image cannot be decoded{reason}", where=where, hint=hint) from error
    if mode[0] in "IF":
        raise DmqError("the image has more than 8 bits a channel", where=where, hint="convert it to 8 bits")
    if channels == 1 and not _is_grey(image):
        hint = "take metrics on an extractor of colour images: `fd-cifar10`, `fid`"
        raise DmqError("an image in colour for a feature extractor that reads grey ones", where=where, hint=hint)
    pixels = np.array(fit(image, size).convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1)


def _is_grey(image: Image.Image) -> bool:
    """Whether there is no colour in it, however it is stored."""
    if image.mode in _GREY:
        return True
    red, green, blue = image.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()
