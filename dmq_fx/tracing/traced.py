"""What tracing gives: the graph, and how a call of the original forward maps to its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

PathKey = str | int


@dataclass(frozen=True)
class TracedInput:
    """One placeholder of the graph.

    path: where the tensor is in a call, dotted (`sample`, `added_cond_kwargs.text_embeds`, `image_rotary_emb.0`).
    keys: the same path, as the argument's name and then keys or indices inside of it.
    name: the placeholder's name.
    dims: the size of each dimension; None where the graph takes any.
    batched: dimension 0 is the batch.
    """

    path: str
    keys: tuple[PathKey, ...]
    name: str
    dims: tuple[int | None, ...]
    dtype: torch.dtype
    batched: bool


@dataclass(frozen=True)
class TracedModel:
    """A denoiser as one graph.

    graph_module: plain positional code, one placeholder for each tensor input; parameters and buffers keep their names.
    inputs: the placeholders, in order.
    constants: arguments that are no tensors, by dotted path, with the value they were traced with.
    timestep: name of the timestep's placeholder.
    signature: of the original forward, without `self`.
    example: the inputs of the trace, flat (they may be on the meta device).
    size_multiple: what height and width must be a multiple of where the graph takes any; 1 otherwise.
    """

    graph_module: torch.fx.GraphModule
    inputs: tuple[TracedInput, ...]
    constants: Mapping[str, Any]
    timestep: str | None
    signature: inspect.Signature
    class_name: str
    config: dict[str, Any]
    example: tuple[torch.Tensor, ...]
    dynamic_size: bool
    size_multiple: int = 1

    @property
    def input_paths(self) -> tuple[str, ...]:
        """Dotted path of each placeholder, in order."""
        return tuple(entry.path for entry in self.inputs)

    @property
    def graph(self) -> torch.fx.Graph:
        return self.graph_module.graph
