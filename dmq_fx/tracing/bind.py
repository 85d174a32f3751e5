"""Mapping a call of the original forward to the inputs of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dmq_fx.errors import TraceError, did_you_mean
from dmq_fx.tracing.traced import TracedInput, TracedModel


class InputError(TraceError):
    """A call that the traced graph cannot serve: an argument is missing, unknown, or has another shape."""


def bind_inputs(traced: TracedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """The graph's inputs for `denoiser(*args, **kwargs)`, in order.

    A scalar timestep becomes `[batch]` on the sample's device. Arguments that are None or equal to their default are
    ignored, as is `return_dict`. Raises InputError for any other argument that the trace has not seen, for a missing
    one, and for shapes and dtypes that the graph does not take.
    """
    arguments = _bind(traced, args, kwargs)
    leaves = dict(_leaves(arguments))
    _check_names(traced, leaves)
    sample = _tensor(traced, leaves, traced.inputs[0])
    batch = sample.shape[0]
    bound = []
    for entry in traced.inputs:
        value = leaves[entry.path]
        if entry.name == traced.timestep:
            bound.append(_timestep(traced, value, entry, sample))
            continue
        tensor = _as_traced(traced, _tensor(traced, leaves, entry), entry)
        _check_shape(traced, tensor, entry, batch)
        bound.append(tensor)
    return tuple(bound)


def _bind(traced: TracedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, without those that are None or their default."""
    try:
        bound = traced.signature.bind_partial(*args, **kwargs).arguments
    except TypeError as error:
        names = list(traced.signature.parameters)
        unknown = next((name for name in kwargs if name not in names), None)
        hint = did_you_mean(unknown, names) if unknown else None
        raise InputError(
            str(error), where=traced.class_name, hint=hint or f"forward takes {', '.join(names)}"
        ) from None
    arguments = {}
    for name, value in bound.items():
        default = traced.signature.parameters[name].default
        plain = isinstance(value, (bool, int, float, str))
        if value is not None and name != "return_dict" and not (plain and value == default):
            arguments[name] = value
    return arguments


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested dicts, lists and tuples with its dotted path; None is left out."""
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        if value is not None:
            yield path, value
        return
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))


def _check_names(traced: TracedModel, leaves: dict[str, Any]) -> None:
    known = (*traced.input_paths, *traced.constants)
    missing = [path for path in traced.input_paths if path not in leaves]
    if missing:
        raise InputError(
            f"missing {', '.join(missing)}", where=traced.class_name, hint=f"traced with {', '.join(known)}"
        )
    for path in leaves:
        if path not in known:
            raise InputError(
                f"the trace has not seen the argument {path!r}",
                where=traced.class_name,
                hint=f"traced with {', '.join(known)}; trace again with inputs= that include it",
            )
    for path, wanted in traced.constants.items():
        parameter = traced.signature.parameters.get(path)
        value = leaves.get(path, parameter.default if parameter else None)
        if value != wanted:
            raise InputError(
                f"{path}={value!r}, and the trace has {wanted!r}",
                where=traced.class_name,
                hint="trace the model again with the inputs= that your pipeline passes",
            )


def _tensor(traced: TracedModel, leaves: dict[str, Any], entry: TracedInput) -> torch.Tensor:
    value = leaves[entry.path]
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{entry.path} is a {type(value).__name__}, expected a tensor", where=traced.class_name)
    return value


def _timestep(traced: TracedModel, value: Any, entry: TracedInput, sample: torch.Tensor) -> torch.Tensor:
    """The timestep as `[batch]`: pipelines pass a number, a 0-d tensor, one value, or one value a sample."""
    if not isinstance(value, torch.Tensor):
        value = torch.tensor(value, dtype=entry.dtype if isinstance(value, int) else torch.float32)
    value = value.to(sample.device)
    if entry.dtype.is_floating_point:  # the other way round would round: graphs of integer timesteps take floats too
        value = value.to(entry.dtype)
    batch = sample.shape[0]
    if len(entry.dims) != 1:
        _check_shape(traced, value, entry, batch)
        return value
    if value.dim() == 0 or value.shape == (1,):
        return value.reshape(1).expand(batch)
    _check_shape(traced, value, entry, batch)
    return value


def _as_traced(traced: TracedModel, tensor: torch.Tensor, entry: TracedInput) -> torch.Tensor:
    """Integers of any width are taken; any other difference in dtype is an error."""
    if tensor.dtype == entry.dtype:
        return tensor
    integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if tensor.dtype in integers and entry.dtype in integers:
        return tensor.to(entry.dtype)
    raise InputError(
        f"{entry.path} is {tensor.dtype}, and the graph takes {entry.dtype}",
        where=traced.class_name,
        hint=f"pass {entry.path}.to({entry.dtype})",
    )


def _check_shape(traced: TracedModel, tensor: torch.Tensor, entry: TracedInput, batch: int) -> None:
    dims = (batch, *entry.dims[1:]) if entry.batched else entry.dims
    fits = len(dims) == tensor.dim() and all(
        wanted in (None, size) for wanted, size in zip(dims, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in dims)
        hint = None
        if tensor.dim() == len(dims) == 4 and not traced.dynamic_size:
            hint = "trace with dynamic_size=True for other heights and widths"
        shape = list(tensor.shape)
        raise InputError(f"{entry.path} has shape {shape}, expected [{wanted}]", where=traced.class_name, hint=hint)
    for size, dim in zip(tensor.shape[2:], entry.dims[2:], strict=True):
        if dim is None and size % traced.size_multiple:
            raise InputError(
                f"{entry.path} has shape {list(tensor.shape)}: height and width must be multiples of "
                f"{traced.size_multiple}",
                where=traced.class_name,
            )
