"""What decides the images of a sampler beside the denoiser, as JSON: caches are named by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dmq_fx.models import LoadedModel, fingerprint
from dmq_fx.models.fingerprint import tensor_hash
from dmq_fx.sampling.sampler import Sampler


def scheduler_record(sampler: Sampler) -> dict[str, Any]:
    """Class and configuration of the scheduler that is used."""
    return {"class": type(sampler.scheduler).__name__, **plain(dict(sampler.scheduler.config))}


def surroundings(loaded: LoadedModel, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The rest of the pipeline, or the values that a bare denoiser is called with."""
    if loaded.pipeline is None:
        leaves = tree_leaves(inputs) if inputs is not None else []
        return {"inputs": [tensor_hash(leaf) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves]}
    parts = {name: part for name, part in loaded.pipeline.components.items() if isinstance(part, nn.Module)}
    others = {name: fingerprint(part) for name, part in parts.items() if part is not loaded.denoiser}
    return {"pipeline": type(loaded.pipeline).__name__, **others}


def plain(value: Any) -> Any:
    """JSON values only: what cannot be one (arrays of a scheduler's configuration) is spelled out."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if not str(key).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return repr(value)
