"""The size of the images that a pipeline gives, as far as its configuration says it."""

from __future__ import annotations

from inspect import signature
from typing import Any

from dmq_fx.models import LoadedModel

DECODERS = ("vae", "vqvae")
"""Parts of a pipeline that make images of latents."""


def image_size(loaded: LoadedModel) -> tuple[int, int] | None:
    """(height, width) in pixels of the pipeline's images where nothing else is asked for; None where it does not say.

    That is the size that the pipeline's call names, or the denoiser's `sample_size`, a number or [height, width], times
    the decoder's scale for a pipeline of latents.
    """
    pipeline = loaded.pipeline
    if pipeline is None:
        return None
    call = signature(pipeline.__call__).parameters
    height, width = (call[side].default if side in call else None for side in ("height", "width"))
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    size, scale = loaded.config.get("sample_size"), _scale(pipeline)
    sides = [size, size] if isinstance(size, int) else size
    if scale is None or not isinstance(sides, list | tuple) or len(sides) != 2:
        return None
    return (int(sides[0]) * scale, int(sides[1]) * scale)


def _scale(pipeline: Any) -> int | None:
    """Pixels a side for one of the latents; 1 of a pipeline of nothing but a denoiser of pixels and a scheduler."""
    parts = dict(getattr(pipeline, "components", {}))
    if set(parts) == {"unet", "scheduler"}:
        return 1
    decoder = next((parts[name] for name in DECODERS if parts.get(name) is not None), None)
    if decoder is None:
        return None
    if isinstance(scale := getattr(pipeline, "vae_scale_factor", None), int):
        return scale
    blocks = getattr(decoder.config, "block_out_channels", None)  # one of the sides' halvings fewer than blocks
    return 2 ** (len(blocks) - 1) if blocks else None
