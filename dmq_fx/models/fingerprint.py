"""Hashes of models, over weights and config, and of tensors."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from dmq_fx.errors import ModelError
from dmq_fx.models.config import config_of


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the config and, sorted by name, every tensor's name, dtype, shape and bytes.

    Raises ModelError for a module on the meta device, which has no bytes.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([type(module).__name__, config_of(module)], sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            raise ModelError(
                "the model has no weights", where=name, hint="a fingerprint needs the weights, not only a config"
            )
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256, the same for tensors of the same dtype, shape and bits, and for no others."""
    digest = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor's values; no copy where they lie together on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
