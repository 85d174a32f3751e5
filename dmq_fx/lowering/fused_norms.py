"""Group norms that a quantize follows become one call: norm, SiLU and integers, without an image in floats between.

What Inductor makes of them reads the image once for each statistic, and calls an exponential that is not its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from dmq_fx.lowering.norm_quantize import NORM_QUANTIZE
from dmq_fx.program.graph_tools import call_arguments, drop_unread_tensors, finish, get_tensor, record, set_buffer

aten = torch.ops.aten
_REARRANGEMENTS = (
    aten.transpose.int,
    aten.permute.default,
    aten.reshape.default,
    aten.flatten.using_ints,
)


@dataclass
class _Chain:
    """A norm, and what stands between it and its integers. moved: rearrangements, the first one first."""

    norm: fx.Node
    silu: bool
    reciprocal: Any
    zero_point: Any
    bounds: tuple[int, int]
    padding: list[int]
    moved: list[fx.Node] = field(default_factory=list)


def fuse_norms(graph_module: fx.GraphModule) -> int:
    """Replace, in place, group norms of images whose result is quantized and nothing else; how many were replaced.

    Rearrangements between move behind the integers. Batches may be of any size, other sizes must be known.
    """
    replaced = 0
    for node in list(graph_module.graph.nodes):
        chain = _chain_before(node)
        if chain is not None:
            _replace(graph_module, node, chain, replaced)
            replaced += 1
    finish(graph_module)
    drop_unread_tensors(graph_module)
    return replaced


def _chain_before(integers: fx.Node) -> _Chain | None:
    """The chain that ends in a node, if that makes integers of a norm."""
    if integers.target is not aten.to.dtype or integers.args[1] != torch.uint8 or not _makes_integers(integers):
        return None
    steps = [integers]
    for target in (aten.clamp.default, aten.add.Tensor, aten.round.default, aten.mul.Tensor):
        source = _source(steps[-1], target)
        if source is None or not _makes_integers(source):
            return None
        steps.append(source)
    _, clamp, add, _, multiply = steps
    low, high = (int(bound) for bound in clamp.args[1:])  # type: ignore[arg-type]
    at, padding = multiply, []
    padded = _source(at, aten.constant_pad_nd.default)
    if padded is not None:
        amounts: Any = padded.args[1]
        if len(padded.args) > 2 or len(amounts) != 4 or amounts[0::2] != amounts[1::2]:
            return None
        at, padding = padded, [amounts[2], amounts[0]]
    cast = _source(at, aten.to.dtype)
    if cast is not None and cast.args[1] == torch.float32:
        at = cast
    moved: list[fx.Node] = []
    while not padding and (source := _source(at, *_REARRANGEMENTS)) is not None:
        moved.insert(0, source)
        at = source
    silu = _source(at, aten.silu.default)
    norm = _source(at if silu is None else silu, aten.group_norm.default)
    if norm is None or not _fits(norm):
        return None
    behind, dims = _dims_behind(multiply.args[1]), call_arguments(norm)["input"].meta["val"].dim()
    if behind is not None and (moved or behind != dims - 2):
        return None  # scaled along something else than the norm's channels
    return _Chain(norm, silu is not None, multiply.args[1], add.args[1], (low, high), padding, moved)


def _source(node: fx.Node, *targets: Any) -> fx.Node | None:
    """What a node reads first, if that is a call of one of these operators, and nothing else reads it."""
    source = node.args[0]
    found = isinstance(source, fx.Node) and source.target in targets and len(source.users) == 1
    return source if found else None  # type: ignore[return-value]


def _makes_integers(node: fx.Node) -> bool:
    return node.meta.get("dmq", {}).get("kind") == "integers"


def _dims_behind(reciprocal: Any) -> int | None:
    """How many dimensions stand behind the one that a reciprocal by channel lies along; None if it is one number."""
    while isinstance(reciprocal, fx.Node) and reciprocal.target is aten.reciprocal.default:
        reciprocal = reciprocal.args[0]
    if not isinstance(reciprocal, fx.Node):
        return None
    if reciprocal.target is aten.reshape.default:
        return len(reciprocal.args[1]) - 1  # type: ignore[arg-type]
    if reciprocal.op == "get_attr":
        return get_tensor(reciprocal.graph.owning_module, str(reciprocal.target)).dim() - 1  # type: ignore[arg-type]
    return None


def _fits(norm: fx.Node) -> bool:
    """Whether a norm is of float32 images or rows of them, of a known size, with parameters as they are stored."""
    given = call_arguments(norm)
    for parameter in (given.get("weight"), given.get("bias")):
        if isinstance(parameter, fx.Node) and parameter.op != "get_attr":
            return False
    value: Any = given["input"].meta.get("val")
    if value is None or value.dim() not in (3, 4) or value.dtype != torch.float32:
        return False
    return all(isinstance(size, int) for size in value.shape[1:])


def _replace(module: fx.GraphModule, integers: fx.Node, chain: _Chain, number: int) -> None:
    graph, given = module.graph, call_arguments(chain.norm)
    with graph.inserting_before(integers):
        reciprocal = _tensor(module, f"dmq_fused_{number}.reciprocal", chain.reciprocal, torch.float32)
        zero_point = _tensor(module, f"dmq_fused_{number}.zero_point", chain.zero_point, torch.int64)
        form = (given["num_groups"], given.get("eps", 1e-5), chain.silu)
        head = (given["input"], given.get("weight"), given.get("bias"), *form, reciprocal, zero_point)
        result = record(graph.call_function(NORM_QUANTIZE, (*head, *chain.bounds, chain.padding)), kind="integers")
        for node in chain.moved:
            moved = graph.call_function(node.target, (result, *node.args[1:]), dict(node.kwargs))  # type: ignore[arg-type]
            result = record(moved, kind="integers")
    integers.replace_all_uses_with(result, propagate_meta=False)
    graph.erase_node(integers)


def _tensor(module: fx.GraphModule, name: str, value: Any, dtype: torch.dtype) -> fx.Node:
    """A number or a node as a node that gives a row of numbers."""
    if isinstance(value, fx.Node):
        return record(module.graph.call_function(aten.reshape.default, (value, [-1])), kind="table")
    set_buffer(module, name, torch.tensor([value], dtype=dtype))
    return module.graph.get_attr(name)
