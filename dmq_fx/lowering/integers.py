"""Integers in front of kernels: the same arithmetic and the same order of operations as in fake quantization.

Both make the same integers: multiply by the reciprocal of the scale, round half to even, add the zero point, clamp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dmq_fx.numerics import IntegerGrid
from dmq_fx.program.graph_tools import record
from dmq_fx.program.program import Activation

aten = torch.ops.aten


def integers_before(
    place: fx.Node, source: fx.Node, reciprocal: Any, zero_point: Any, bounds: tuple[int, int], dtype: torch.dtype
) -> fx.Node:
    """The integers of a float32 value, in front of `place`, operation by operation as fake quantization makes them."""
    steps = (
        (aten.mul.Tensor, reciprocal),
        (aten.round.default,),
        (aten.add.Tensor, zero_point),
        (aten.clamp.default, *bounds),
        (aten.to.dtype, dtype),
    )
    for target, *arguments in steps:
        source = before(place, target, source, *arguments)
    return source


def before(place: fx.Node, target: Any, *arguments: Any) -> fx.Node:
    """A call in front of `place` that makes integers, and keeps its type whatever the rest is computed in."""
    with place.graph.inserting_before(place):
        return record(place.graph.call_function(target, arguments), kind="integers")


def offset_of(activation: Activation) -> int:
    """What makes the integers of a signed grid unsigned: as little as does, for sums that cancel exactly."""
    return -IntegerGrid(activation.spec.bits, True).qmin if activation.spec.symmetric else 0


def bounds_of(activation: Activation) -> tuple[int, int]:
    """The smallest and the largest of an activation's unsigned integers."""
    grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)
    return grid.qmin + offset_of(activation), grid.qmax + offset_of(activation)
