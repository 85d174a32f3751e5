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

from dmq_fx.errors import ModelError
from dmq_fx.models.config import class_name_of, read_json
from dmq_fx.models.loaded import LoadedModel
from dmq_fx.models.pipeline import component_folder, denoiser_component

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
        """Images in 0..1, an array [batch, height, width, channels], from one generator each.

        Raises ModelError without a denoiser.
        """
        if self.unet is None:
            raise ModelError("the pipeline has no denoiser", hint="it was loaded without: give another")
        noise = [torch.randn((1, *self.shape), generator=one) for one in generator]
        assert len(noise) == batch_size
        x: Tensor = torch.cat(noise)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            predicted = self.unet(x, t, return_dict=False)[0]
            x = self.scheduler.step(predicted, t, x, generator=list(generator), return_dict=False)[0]
        return ((x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(),)


def load_pixels(folder: Path, origin: str) -> LoadedModel | None:
    """The pipeline in `folder` around an empty module, its configuration as the file says it.

    None for any other, and for what diffusers may refuse: it says why. Raises ModelError for configurations that cannot
    be read, and for a denoiser that is no class of diffusers.
    """
    path = folder / "model_index.json"
    index = read_json(path)
    denoiser_component(index, path)
    parts = {name: entry for name, entry in index.items() if not name.startswith("_")}
    if index.get("_class_name") not in PIPELINES or set(parts) != {COMPONENT, SCHEDULER}:
        return None
    where = component_folder(folder, COMPONENT) / "config.json"
    config = read_json(where)
    name = class_name_of(config, where)
    scheduler = _scheduler(index["_class_name"], folder / SCHEDULER / "scheduler_config.json", parts[SCHEDULER])
    shape = _shape(config)
    if scheduler is None or shape is None:
        return None
    stated = {key: value for key, value in config.items() if not key.startswith("_")}
    return LoadedModel(nn.Module(), COMPONENT, PixelPipeline(scheduler, shape), origin, stated, name)


def _shape(config: dict[str, Any]) -> tuple[int, int, int] | None:
    """(channels, height, width) of an image; None where the configuration does not say it in whole numbers."""
    size, channels = config.get("sample_size"), config.get("in_channels")
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    found = [value for value in (channels, *sides) if type(value) is int]
    return (found[0], found[1], found[2]) if len(found) == 3 else None


def _scheduler(pipeline: str, path: Path, entry: Any) -> Any:
    """The pipeline's scheduler: DDIMPipeline makes a DDIM scheduler of any. None where diffusers knows better."""
    import diffusers

    stated = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    name = "DDIMScheduler" if pipeline == "DDIMPipeline" and stated else stated
    if not path.is_file() or name not in ("DDIMScheduler", "DDPMScheduler"):
        return None
    cls = getattr(diffusers, name)
    # What another scheduler's configuration has besides is left out, as `from_config` does after importing them all.
    accepted = signature(cls.__init__).parameters.keys() - {"self", "kwargs"}
    try:
        return cls(**{key: value for key, value in read_json(path).items() if key in accepted})
    except Exception:  # whatever a scheduler makes of a configuration that is not its own
        return None
