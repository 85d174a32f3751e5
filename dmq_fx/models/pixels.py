"""Pipelines of nothing but a denoiser of pixels and a scheduler, without the class of the denoiser.

diffusers' own classes of such pipelines import every model that it knows, which takes longer than an image does.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.models.config import read_json
from dmq_fx.models.loaded import LoadedModel

PIPELINES = ("DDIMPipeline", "DDPMPipeline")
COMPONENT, SCHEDULER = "unet", "scheduler"


class PixelPipeline:
    """Gives what diffusers' DDIMPipeline and DDPMPipeline give of the same noise, on the CPU and in float32.

    shape: of an image, (channels, height, width). unet: set before a call; takes (image, timestep).
    """

    def __init__(self, scheduler: Any, shape: tuple[int, int, int]) -> None:
        self.unet: Any = None
        self.scheduler = scheduler
        self.shape = shape

    @property
    def components(self) -> dict[str, Any]:
        """Its parts by name, as a pipeline of diffusers has them."""
        return {COMPONENT: self.unet, SCHEDULER: self.scheduler}

    def __call__(self, batch_size: int, num_inference_steps: int, generator: Sequence[torch.Generator]) -> tuple[Any]:
        """Images in 0..1, an array [batch, height, width, channels], from one generator each."""
        noise = [torch.randn((1, *self.shape), generator=one) for one in generator]
        assert len(noise) == batch_size
        x: Tensor = torch.cat(noise)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            predicted = self.unet(x, t, return_dict=False)[0]
            x = self.scheduler.step(predicted, t, x, generator=list(generator), return_dict=False)[0]
        return ((x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(),)


def load_pixels(folder: Path, origin: str) -> LoadedModel | None:
    """The pipeline in `folder` around an empty module, its configuration as the file says it; None for any other.

    Raises ModelError for files that cannot be read.
    """
    index = read_json(folder / "model_index.json")
    parts = {name: entry for name, entry in index.items() if not name.startswith("_")}
    if index.get("_class_name") not in PIPELINES or set(parts) != {COMPONENT, SCHEDULER}:
        return None
    config = read_json(folder / COMPONENT / "config.json")
    scheduler = _scheduler(index["_class_name"], folder / SCHEDULER / "scheduler_config.json", parts[SCHEDULER])
    size, channels = config.get("sample_size"), config.get("in_channels")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if scheduler is None or not all(type(value) is int for value in (channels, height, width)):
        return None
    stated = {key: value for key, value in config.items() if not key.startswith("_")}
    pipeline: Any = PixelPipeline(scheduler, (channels, height, width))
    return LoadedModel(nn.Module(), COMPONENT, pipeline, origin, stated, str(config.get("_class_name")))


def _scheduler(pipeline: str, path: Path, entry: Any) -> Any:
    """The pipeline's scheduler: DDIMPipeline makes a DDIM scheduler of any. None where dmq cannot know better."""
    import diffusers

    name = "DDIMScheduler" if pipeline == "DDIMPipeline" else entry[1] if isinstance(entry, list) else None
    if not path.is_file() or name not in ("DDIMScheduler", "DDPMScheduler"):
        return None
    cls = getattr(diffusers, name)
    # What another scheduler's configuration has besides is left out, as `from_config` does after importing them all.
    accepted = signature(cls.__init__).parameters.keys() - {"self", "kwargs"}
    return cls(**{key: value for key, value in read_json(path).items() if key in accepted})
