"""Tracing: a denoiser becomes one canonical graph."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx, nn

from dmq_fx.errors import DmqError, TraceError
from dmq_fx.models import config_of, example_inputs
from dmq_fx.tracing.canonicalize import canonicalize
from dmq_fx.tracing.export import batch_size, call_arguments, export_graph
from dmq_fx.tracing.failure import trace_error
from dmq_fx.tracing.traced import TracedInput, TracedModel

TIMESTEP_NAMES = ("timestep", "timesteps", "t")
"""What forward's timestep argument is called in diffusers and in the models it was ported from."""


def trace(denoiser: nn.Module, inputs: dict[str, Any] | None = None, *, dynamic_size: bool = False) -> TracedModel:
    """Trace a denoiser (on a real device or on meta: the graphs are equal) into a canonical graph.

    inputs: keyword arguments of its forward, with a batch of at least two; derived from the config if not given.
    dynamic_size: the graph takes any height and width (UNets; traces about twice as long).
    Raises TraceError, which names the module and the line of the model's code that cannot be traced.
    """
    given = example_inputs(denoiser) if inputs is None else dict(inputs)
    arguments = call_arguments(denoiser, given)
    _check_batch(denoiser, arguments)
    try:
        graph_module, paths = export_graph(denoiser, arguments, dynamic_size=dynamic_size)
    except DmqError:
        raise
    except Exception as error:  # whatever the model's code or torch.export raises
        raise trace_error(denoiser, error) from error
    entries, constants = _inputs(graph_module, paths, arguments)
    canonicalize(graph_module)
    timestep = next((entry.name for entry in entries if entry.path in TIMESTEP_NAMES), None)
    return TracedModel(
        graph_module=graph_module,
        inputs=entries,
        constants=constants,
        timestep=timestep,
        signature=forward_signature(type(denoiser)),
        class_name=type(denoiser).__name__,
        config=config_of(denoiser),
        example=tuple(_at(arguments, entry.keys) for entry in entries),
        dynamic_size=dynamic_size,
        size_multiple=_size_multiple(denoiser) if dynamic_size else 1,
    )


def _check_batch(denoiser: nn.Module, arguments: dict[str, Any]) -> None:
    batch = batch_size(arguments)
    if batch is None or batch < 2:
        raise TraceError(
            f"the inputs of the trace have a batch of {batch}",
            where=type(denoiser).__name__,
            hint="give a batch of at least two: torch.export takes a batch of one for a constant",
        )


def _inputs(
    graph_module: fx.GraphModule, paths: list[tuple[Any, ...]], arguments: dict[str, Any]
) -> tuple[tuple[TracedInput, ...], dict[str, Any]]:
    """Describe the placeholders, and take those of constants out of the graph."""
    entries: list[TracedInput] = []
    constants: dict[str, Any] = {}
    batch = batch_size(arguments)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    for node, keys in zip(placeholders, paths, strict=True):
        path = ".".join(map(str, keys))
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            if node.users:
                raise TraceError(f"the graph computes with the argument {path!r}, which is no tensor", where=path)
            if path != "return_dict" and value is not None:
                constants[path] = value
            graph_module.graph.erase_node(node)
            continue
        original = _at(arguments, keys)
        batched = original.dim() > 0 and original.shape[0] == batch
        dims = tuple(size if isinstance(size, int) else size.node.maybe_as_int() for size in value.shape)
        if batched and dims[0] is not None:
            raise TraceError(
                f"the model's code fixes the batch of {path!r} to {dims[0]}",
                where=path,
                hint="the model must not compute with the batch as a Python number",
            )
        entries.append(TracedInput(path, keys, node.name, dims, value.dtype, batched))
    graph_module.recompile()
    return tuple(entries), constants


def _at(arguments: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        arguments = arguments[key]
    return arguments


def forward_signature(denoiser_class: type[nn.Module]) -> inspect.Signature:
    """The signature of a class's forward, without `self`."""
    signature = inspect.signature(denoiser_class.forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _size_multiple(denoiser: nn.Module) -> int:
    """Every resolution of a UNet must halve without a rest: the trace took that branch of the model's code."""
    blocks = config_of(denoiser).get("up_block_types") or ()
    return 2 ** max(0, len(blocks) - 1)
