"""How calls map to a graph's inputs, as JSON: what a compiled graph needs in place of a trace."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from dmq_fx.tracing.traced import TracedInput, TracedModel

_NONE = inspect.Parameter.empty


def describe_call(traced: TracedModel) -> dict[str, Any]:
    """Everything that `bind_inputs` uses."""
    return {
        "signature": [
            [name, parameter.kind.name, *([] if parameter.default is _NONE else [_plain(parameter.default)])]
            for name, parameter in traced.signature.parameters.items()
        ],
        "inputs": [
            {**vars(entry), "keys": list(entry.keys), "dims": list(entry.dims), "dtype": str(entry.dtype)[6:]}
            for entry in traced.inputs
        ],
        "constants": dict(traced.constants),
        "timestep": traced.timestep,
        "class_name": traced.class_name,
        "dynamic_size": traced.dynamic_size,
        "size_multiple": traced.size_multiple,
    }


def rebuild_call(description: Mapping[str, Any]) -> TracedModel:
    """A traced model without a graph and without examples, called as the one that was described."""
    entries = tuple(
        TracedInput(
            **{
                **entry,
                "keys": tuple(entry["keys"]),
                "dims": tuple(entry["dims"]),
                "dtype": getattr(torch, entry["dtype"]),
            }
        )
        for entry in description["inputs"]
    )
    return TracedModel(
        graph_module=fx.GraphModule(nn.Module(), fx.Graph()),
        inputs=entries,
        constants=dict(description["constants"]),
        timestep=description["timestep"],
        signature=inspect.Signature(
            [
                inspect.Parameter(name, getattr(inspect.Parameter, kind), default=default[0] if default else _NONE)
                for name, kind, *default in description["signature"]
            ]
        ),
        class_name=description["class_name"],
        config={},
        example=(),
        dynamic_size=description["dynamic_size"],
        size_multiple=description["size_multiple"],
    )


def _plain(default: Any) -> Any:
    """A default that an argument can be compared with; others are never equal to what a call gives."""
    return default if isinstance(default, (bool, int, float, str)) else None
