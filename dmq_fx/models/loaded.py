"""What loading gives: the denoiser, and the pipeline around it if there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from dmq_fx.models.pixels import PixelPipeline

COMPONENTS = ("unet", "transformer")
"""Attributes under which diffusers' pipelines keep their denoiser."""


@dataclass(frozen=True)
class LoadedModel:
    """A denoiser that is ready to be traced, in eval mode, without gradients; or what is around one (`load_pixels`).

    component: attribute of the pipeline (`unet`, `transformer`), or `denoiser` for a module of another kind.
    pipeline: that around the denoiser, or dmq's own of the same images; None where only the denoiser was loaded.
    origin: the source as the user gave it, or the class of an object that was passed.
    config: the denoiser's own configuration, as JSON values, without `_class_name`.
    class_name: name of the denoiser's class.
    """

    denoiser: nn.Module
    component: str
    pipeline: DiffusionPipeline | PixelPipeline | None
    origin: str
    config: dict[str, Any]
    class_name: str

    @property
    def has_weights(self) -> bool:
        """False where the denoiser was built on the meta device, which is enough to plan, or not at all."""
        tensors = self.denoiser.state_dict().values()
        return bool(tensors) and not any(tensor.is_meta for tensor in tensors)


def component_of(class_name: str) -> str:
    """The pipeline attribute a denoiser class goes under: by diffusers' own naming of classes."""
    if "UNet" in class_name:
        return "unet"
    return "transformer" if "Transformer" in class_name or "DiT" in class_name else "denoiser"


def freeze(denoiser: nn.Module) -> nn.Module:
    """Put the denoiser in eval mode without gradients, in place."""
    return denoiser.eval().requires_grad_(False)
