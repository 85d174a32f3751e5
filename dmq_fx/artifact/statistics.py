"""`inspection.safetensors`: what a compile saw of every site, and its first images, for `dmq inspect`.

Nothing else reads it. Numbers of all sites lie behind one another in few tensors; the metadata says whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from dmq_fx.calibration.errors_by_site import finite
from dmq_fx.calibration.site_statistics import (
    BINS,
    Distribution,
    InputStatistics,
    StatisticsCollector,
    WeightStatistics,
)

VERSION = 1
CHANNELS = 256
"""Numbers by channel that are kept of a site; of more channels, the largest of each run."""
IMAGES = 8
PIXELS = 128
"""Images that are kept, and the size that larger ones are reduced to."""


def encode_statistics(
    collector: StatisticsCollector, images: tuple[Tensor, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of the file.

    `KIND` is `input` or `weight`; `WHEN` is `before` or `after` scaling (only of scaled sites).
    `KIND.WHEN.channels`: float16, largest |x| by channel over the site's peak, sites behind one another.
    `KIND.WHEN.counts`: float16 [sites, BINS], shares; `KIND.WHEN.limit`, `.peak`: float32 [sites].
    `input.WHEN.range`: float32 [sites, slots, 2]; `input.quantized`: the same, of the integers, NaN without.
    `images.full_precision`, `images.quantized`: uint8 [images, channels, height, width].
    images: of both models from the same noise, [samples, channels, height, width] in 0..1.
    """
    program, tensors = collector.program, {}
    sites = list(program.plan.sites)
    metadata: dict[str, Any] = {"version": VERSION, "bins": BINS, "sites": [planned.name for planned in sites]}
    inputs = {planned.name: collector.inputs[planned.name] for planned in sites if planned.name in collector.inputs}
    weights: dict[str, WeightStatistics] = {}
    for planned in sites:
        found = collector.weight(planned)
        if found is not None:
            weights[planned.name] = found
    for kind, of_sites in (("input", inputs), ("weight", weights)):
        part, facts = _distributions(kind, of_sites)
        tensors |= part
        metadata[kind] = facts
    tensors |= _ranges(inputs)
    quantized = {name: found for p in sites if (found := collector.quantized_range(p)) is not None for name in [p.name]}
    if quantized:
        metadata["quantized"] = list(quantized)
        tensors["input.quantized"] = torch.stack(list(quantized.values())).contiguous()
    if images is not None and all(_is_picture(batch) for batch in images):
        tensors |= {f"images.{name}": _small(batch) for name, batch in zip(_MODELS, images, strict=True)}
    return tensors, metadata


_MODELS = ("full_precision", "quantized")


def _distributions(
    kind: str, of_sites: dict[str, InputStatistics] | dict[str, WeightStatistics]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of one kind, and per site its number of channels and its kurtosis."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"sites": list(of_sites)}
    scaled = [name for name, found in of_sites.items() if found.after is not found.before]
    facts["scaled"] = scaled
    facts["channels"] = [len(found.before.channels) for found in of_sites.values()]
    facts["kurtosis"] = [finite(float(f"{found.before.kurtosis:.4g}")) for found in of_sites.values()]
    after = [of_sites[name].after for name in scaled]
    facts["kurtosis_scaled"] = [finite(float(f"{one.kurtosis:.4g}")) for one in after]
    for when, found in (("before", [one.before for one in of_sites.values()]), ("after", after)):
        if found:
            tensors |= {f"{kind}.{when}.{name}": tensor for name, tensor in _stacked(found).items()}
    return tensors, facts


def _stacked(found: Sequence[Distribution]) -> dict[str, Tensor]:
    peaks = [one.channels.max() for one in found]
    shares = [one.counts / one.counts.sum().clamp_min(1) for one in found]
    ratios = [runs(one.channels) / peak.clamp_min(1e-30) for one, peak in zip(found, peaks, strict=True)]
    return {
        "channels": torch.cat(ratios).half(),
        "counts": torch.stack(shares).half(),
        "limit": torch.tensor([one.limit for one in found], dtype=torch.float32),
        "peak": torch.stack(peaks).float(),
    }


def runs(values: Tensor) -> Tensor:
    """At most CHANNELS numbers: the largest of each run of so many as it takes; values: [channels]."""
    length = run_length(len(values))
    return pad(values, (0, -len(values) % length)).reshape(-1, length).amax(1)


def run_length(channels: int) -> int:
    """Channels that one number stands for."""
    return -(-channels // CHANNELS)


def _ranges(inputs: dict[str, InputStatistics]) -> dict[str, Tensor]:
    if not inputs:
        return {}
    tensors = {"input.before.range": torch.stack([torch.stack([one.low, one.high], 1) for one in inputs.values()])}
    scaled = [one for one in inputs.values() if one.after is not one.before]
    if scaled:
        ends = [torch.stack([one.scaled_low, one.scaled_high], 1) for one in scaled]
        tensors["input.after.range"] = torch.stack(ends)
    return tensors


def _is_picture(batch: Tensor) -> bool:
    return batch.dim() == 4 and batch.shape[1] in (1, 3) and bool(torch.isfinite(batch).all())


def _small(batch: Tensor) -> Tensor:
    """The first images as bytes, none larger than PIXELS."""
    batch = batch[:IMAGES].float().clamp(0, 1)
    largest = max(batch.shape[2:])
    if largest > PIXELS:
        height, width = (max(1, round(size * PIXELS / largest)) for size in batch.shape[2:])
        batch = adaptive_avg_pool2d(batch, (height, width))
    return (batch * 255).round().to(torch.uint8)
