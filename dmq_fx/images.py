"""Grids of samples as pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dmq_fx.errors import DmqError

MARGIN = 8
CAPTION = 22
TARGET = 96
"""Smallest width that a picture of a grid is enlarged to, by whole factors, so that 32 pixels can be seen."""


def save_grids(path: str | Path, panels: Sequence[tuple[str, Tensor]], facts: Mapping[str, Any] | None = None) -> None:
    """Write panels side by side, each a caption and a square-ish grid of its images, as one picture.

    panels: (caption, images [n, channels, height, width] in 0..1, 1 or 3 channels). facts: JSON that a PNG keeps as
    its text chunk `dmq`: where the images are from. Raises DmqError for
    images that cannot be shown or a path that cannot be written.
    """
    grids = [(caption, _grid(images)) for caption, images in panels]
    width = sum(grid.width for _, grid in grids) + MARGIN * (len(grids) + 1)
    height = max(grid.height for _, grid in grids) + CAPTION + MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    draw, font, left = ImageDraw.Draw(canvas), ImageFont.load_default(14), MARGIN
    for caption, grid in grids:
        draw.text((left, 3), caption, fill="black", font=font)
        canvas.paste(grid, (left, CAPTION))
        left += grid.width + MARGIN
    written: dict[str, Any] = {}
    if facts is not None and Path(path).suffix.lower() == ".png":
        text = PngInfo()
        text.add_itxt("dmq", json.dumps(facts, sort_keys=True, ensure_ascii=False))
        written["pnginfo"] = text
    try:
        canvas.save(path, **written)
    except (OSError, ValueError) as error:
        hint = "use a path ending in .png, in a folder that exists"
        raise DmqError(f"cannot write the picture: {error}", where=str(path), hint=hint) from None


def check_picture(path: str | Path) -> None:
    """Raise DmqError if a picture cannot be written at `path`; worth asking before minutes of sampling."""
    path = Path(path)
    if not path.parent.is_dir() or path.is_dir() or path.suffix.lower() not in Image.registered_extensions():
        hint = "use a path ending in .png, in a folder that exists"
        raise DmqError("cannot write the picture there", where=str(path), hint=hint)


def _grid(images: Tensor) -> Image.Image:
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise DmqError(
            f"samples of shape {list(images.shape)} are no pictures",
            hint="only pipelines that end in images with 1 or 3 channels can be shown; `dmq eval` works for all",
        )
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    factor = max(1, round(TARGET / images.shape[3])) if images.shape[3] < TARGET else 1
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    height, width = images.shape[2] * factor, images.shape[3] * factor
    canvas = Image.new("RGB", (columns * (width + 2) - 2, rows * (height + 2) - 2), "white")
    for index, picture in enumerate(pixels):
        tile = Image.fromarray(picture.contiguous().numpy()).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(tile, ((index % columns) * (width + 2), (index // columns) * (height + 2)))
    return canvas
