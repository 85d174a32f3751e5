"""The inputs that a model was traced with, as JSON: an artifact is traced again with the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmq_fx.tracing.traced import TracedModel


def describe_inputs(traced: TracedModel) -> dict[str, Any]:
    """Path, shape and type of every tensor input, and the values of the other arguments."""
    tensors = [
        {"keys": list(entry.keys), "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for entry, value in zip(traced.inputs, traced.example, strict=True)
    ]
    return {"tensors": tensors, "constants": dict(traced.constants)}


def rebuild_inputs(description: Mapping[str, Any], device: torch.device | str = "meta") -> dict[str, Any]:
    """Keyword arguments of the shapes that were traced: empty tensors on `device`. Sequences become tuples."""
    root: dict[Any, Any] = {}
    for entry in description["tensors"]:
        dtype = getattr(torch, entry["dtype"])
        _put(root, entry["keys"], torch.empty(entry["shape"], dtype=dtype, device=device))
    for path, value in description["constants"].items():
        _put(root, [int(key) if key.isdigit() else key for key in path.split(".")], value)
    return {key: _sequences(value) for key, value in root.items()}


def repeat_inputs(inputs: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """`inputs` with the first sample's row of every batched tensor repeated `batch` times."""
    traced_batch = next((leaf.shape[0] for leaf in _leaves(inputs) if leaf.dim()), 0)

    def repeat(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dim() == 0 or value.shape[0] != traced_batch:
                return value
            return value[:1].expand(batch, *value.shape[1:]).contiguous()
        if isinstance(value, Mapping):
            return {key: repeat(item) for key, item in value.items()}
        return type(value)(repeat(item) for item in value) if isinstance(value, (list, tuple)) else value

    return repeat(inputs)


def _put(root: dict[Any, Any], keys: list[Any], value: Any) -> None:
    for key in keys[:-1]:
        root = root.setdefault(key, {})
    root[keys[-1]] = value


def _sequences(value: Any) -> Any:
    """Dicts whose keys are positions become tuples."""
    if not isinstance(value, dict):
        return value
    items = {key: _sequences(item) for key, item in value.items()}
    if items and all(isinstance(key, int) for key in items):
        return tuple(items[index] for index in sorted(items))
    return items


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, (list, tuple)) else []
