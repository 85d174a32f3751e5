"""Fake quantization: run the graph's quantize and dequantize nodes as they stand, on any device.

This is the reference of the integers; every other backend must agree with it to float rounding.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from dmq_fx.backend_api import BACKENDS
from dmq_fx.errors import BackendError
from dmq_fx.tracing import retarget


class FakeQuant:
    """Moves the graph to the device; nothing is rewritten."""

    @staticmethod
    def lower(graph_module: fx.GraphModule, device: torch.device) -> nn.Module:
        if device.type == "cuda" and not torch.cuda.is_available():
            raise BackendError("no CUDA device is available", hint="use --device cpu")
        graph_module.to(device)
        retarget(graph_module, device)
        return graph_module


BACKENDS.register("fake_quant")(FakeQuant())
