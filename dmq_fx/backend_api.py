"""What a backend is: a lowering target for a quantized graph."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import fx, nn

from dmq_fx.registry import Registry


class Backend(Protocol):
    """Turns a graph of quantize/dequantize nodes into a module that runs on a device."""

    def lower(self, graph_module: fx.GraphModule, device: torch.device) -> nn.Module:
        """A module that takes the graph's flat inputs and returns its outputs; raises BackendError if it cannot."""
        ...


BACKENDS: Registry[Backend] = Registry("backend", entry_point_group="dmq_fx.backends")
"""Backends by the name that recipes use."""
