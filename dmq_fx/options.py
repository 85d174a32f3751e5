"""Devices and types by the names that users give."""

from __future__ import annotations

import torch

from dmq_fx.errors import DmqError, did_you_mean

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_dtype(name: str) -> torch.dtype:
    """The type called `name`; raises DmqError for one that a denoiser cannot compute in."""
    if name not in DTYPES:
        hint = did_you_mean(name, DTYPES) or f"known: {', '.join(DTYPES)}"
        raise DmqError(f"unknown type {name!r}", where="--dtype", hint=hint)
    return DTYPES[name]


def parse_device(name: str | torch.device) -> torch.device:
    """The device called `name`; raises DmqError if there is none of that name here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        message = f"unknown device {str(name)!r}"
        raise DmqError(message, where="--device", hint="cpu, cuda, or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DmqError("no CUDA device is available", where="--device", hint="use --device cpu")
    return device
