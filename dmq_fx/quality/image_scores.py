"""Scores of images themselves: beside full precision's from the same noise, or their prompts; by torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.errors import DmqError, ModelError
from dmq_fx.quality.features import to_uint8
from dmq_fx.quality.libraries import library, require_torchvision

CLIP_MODEL = "openai/clip-vit-base-patch16"
"""What CLIP scores are taken with where nothing else is asked for. Scores of two models do not compare."""

Pairs = Iterable[tuple[Tensor, Tensor]]
"""Batches of (images, full precision's from the same noise), [n, 1 or 3, height, width], uint8 or floats in 0..1."""


def psnr(pairs: Pairs) -> float | None:
    """Peak signal-to-noise ratio in dB, of the mean squared error over all pixels; None where all are equal.

    Of images as they are: floats are not rounded to 8 bits. Raises DmqError for images that do not pair.
    """
    module = library("torchmetrics.image", needed_for="a PSNR")
    metric = module.PeakSignalNoiseRatio(data_range=1.0).set_dtype(torch.float64)
    for images, exact in _checked(pairs):
        metric.update(_unit(images).double(), _unit(exact).double())
    value = float(metric.compute())
    return value if math.isfinite(value) else None


def load_lpips(network: str = "alex", device: str | torch.device = "cpu") -> Any:
    """torchmetrics' LPIPS (arXiv:1801.03924) on `network`: `alex`, `vgg` or `squeeze`.

    Raises DmqError for another network or where torchvision, which has them, is missing, and ModelError where their
    weights cannot be fetched.
    """
    module = library("torchmetrics.image.lpip", needed_for="LPIPS")
    require_torchvision()
    try:
        return module.LearnedPerceptualImagePatchSimilarity(net_type=network, normalize=True).to(device)
    except ValueError as error:
        raise DmqError(f"LPIPS has no network {network!r}", hint="alex, vgg or squeeze") from error
    except Exception as error:  # whatever torchvision raises where it cannot download
        message = f"LPIPS's weights cannot be fetched: {_first_line(error)}"
        hint = "check the network; torchvision keeps them in torch.hub's cache"
        raise ModelError(message, where=network, hint=hint) from error


def lpips(pairs: Pairs, metric: Any) -> float:
    """Learned perceptual distance by `metric` of `load_lpips`, mean over pairs.

    Of images as they would be saved, in 8 bits; grey ones are repeated. Raises DmqError for images that do not pair.
    """
    metric.reset()  # it is used for set after set
    for images, exact in _checked(pairs):
        a, b = (_colour(to_uint8(side)).to(metric.device).float() / 255 for side in (images, exact))
        metric.update(a, b)
    return float(metric.compute())


def clip_score(
    batches: Iterable[tuple[Tensor, Sequence[str]]], model: str = CLIP_MODEL, *, device: str | torch.device = "cpu"
) -> float:
    """100 times the mean cosine of images and their prompts in CLIP's space (arXiv:2104.08718), at least 0.

    batches: images [n, 1 or 3, height, width] and n prompts. model: a CLIP of transformers, as a folder or a hub id.
    Raises ModelError where it cannot be loaded, and DmqError for images without prompts.
    """
    module = library("torchmetrics.multimodal", needed_for="a CLIP score")
    network, processor = load_clip(model)
    metric = module.CLIPScore(model_name_or_path=lambda: (network, processor)).to(device)
    seen = 0
    for images, prompts in batches:
        if len(images) != len(prompts):
            raise DmqError(f"a CLIP score needs a prompt for each image: {len(images)} images, {len(prompts)} prompts")
        metric.update(_colour(to_uint8(images)).to(device), list(prompts))
        seen += len(images)
    if not seen:
        raise DmqError("there are no images to take a CLIP score of")
    return float(metric.compute())


class _Embeddings(nn.Module):
    """transformers' CLIP with embeddings as tensors: since its version 5 they come inside of an output object."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return _tensor(self.model.get_image_features(pixel_values=pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.to(input_ids.device)
        return _tensor(self.model.get_text_features(input_ids=input_ids, attention_mask=mask))


@lru_cache(maxsize=1)
def load_clip(model: str) -> tuple[nn.Module, Any]:
    """CLIP of a folder or hub id, with its processor, read once for all repeats; raises ModelError."""
    from transformers import CLIPModel, CLIPProcessor

    try:
        network = CLIPModel.from_pretrained(model)
        return _Embeddings(network.eval().requires_grad_(False)), CLIPProcessor.from_pretrained(model)
    except Exception as error:  # of huggingface_hub, of requests, of safetensors, of a config that is no CLIP's
        hint = "give the folder of a CLIP model of transformers; check the network where it is on the hub"
        raise ModelError(f"the CLIP model cannot be loaded: {_first_line(error)}", where=model, hint=hint) from error


def _checked(pairs: Pairs) -> Iterable[tuple[Tensor, Tensor]]:
    seen = 0
    for images, exact in pairs:
        if images.shape != exact.shape:
            message = f"images of shapes {list(images.shape)} and {list(exact.shape)} do not pair"
            raise DmqError(message, hint="sample both models with the same seed and number of images")
        seen += len(images)
        yield images, exact
    if not seen:
        raise DmqError("there are no pairs of images to compare")


def _unit(images: Tensor) -> Tensor:
    return images / 255 if images.dtype == torch.uint8 else images


def _colour(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
