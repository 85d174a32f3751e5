"""Attention that is written out as two products: its sites run on integers in one call, with the softmax between them.

The first product's sums are exact, as those of other kernels are. Probabilities become integers inside the kernel, when
a whole row of them is known, by the arithmetic of fake quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from dmq_fx.lowering.int8_attention import INT8_ATTENTION, LARGEST_KEYS, LARGEST_WIDTH
from dmq_fx.lowering.integers import bounds_of
from dmq_fx.program.graph_tools import call_arguments, record
from dmq_fx.program.program import Activation

if TYPE_CHECKING:
    from dmq_fx.lowering.int8_sites import Lowering

aten = torch.ops.aten
KERNEL = "int8 attention"
_PRODUCTS: dict[Any, tuple[str, str]] = {aten.matmul.default: ("self", "other"), aten.bmm.default: ("self", "mat2")}


@dataclass(frozen=True)
class Attention:
    """softmax(scores * scale) values, each product a site. scores, values: calls of products in one graph."""

    scores: fx.Node
    values: fx.Node
    scale: float


def written_out_attention(graph: fx.Graph) -> dict[str, Attention]:
    """The attention of a full-precision graph that a kernel can compute, by the names of both its products."""
    found: dict[str, Attention] = {}
    for node in graph.nodes:
        pair = _attention_of(node)
        if pair is not None and not {pair.scores.name, pair.values.name} & found.keys():
            found |= {pair.scores.name: pair, pair.values.name: pair}
    return found


def why_no_attention(node: fx.Node, pair: Attention | None, specs: Mapping[str, Any]) -> str:
    """Why a product of two activations has no kernel; empty if it has one.

    pair: the attention that it belongs to. specs: what is quantized, by node.
    """
    if node.target is aten.scaled_dot_product_attention.default:
        return "its softmax is computed in floating point: the pass split_attention quantizes that, too"
    if pair is None:
        return "a product of two activations, but not of attention (a mask?): its inputs meet in floating point"
    if any(specs.get(node.name) is None for node in (pair.scores, pair.values)):
        return "the other product of this attention is in full precision"
    keys = pair.scores.meta["val"].shape[-1]
    if not isinstance(keys, int) or keys > LARGEST_KEYS:
        return f"sums over more than {LARGEST_KEYS} keys, or an unknown number of them, may not fit int32"
    width = call_arguments(pair.scores)["self"].meta["val"].shape[-1]
    if not isinstance(width, int) or width > LARGEST_WIDTH:
        return f"its queries are wider than {LARGEST_WIDTH}"
    return ""


def lower_attention(lowering: Lowering, pair: Attention) -> None:
    """Replace both products of an attention and what stands between them, in place, by one call."""
    program, graph = lowering.program, lowering.graph
    scores, values = (lowering.planned[node.name] for node in (pair.scores, pair.values))
    operands = [program.activation_of(planned, operand) for planned in (scores, values) for operand in (0, 1)]
    query, key, shares, value = (activation for activation in operands if activation is not None)
    node = lowering.nodes[pair.values.name]
    flat = pair.values.meta["val"].dim() == 3
    integers = [lowering.integers_of(activation) for activation in (query, key, value)]
    table = (query, key, shares, value)
    with graph.inserting_before(node):
        scales, zeros = (_table(lowering, f"{values.name}.{name}", table, name) for name in ("scale", "zero_point"))
        integers[1] = graph.call_function(aten.transpose.int, (integers[1], -2, -1))
        if flat:
            integers = [graph.call_function(aten.unsqueeze.default, (x, 1)) for x in integers]
        tail = (scales, zeros, pair.scale, *bounds_of(shares), torch.float32)
        call = graph.call_function(INT8_ATTENTION, (*integers, *tail))
        result = graph.call_function(aten.squeeze.dim, (call, 1)) if flat else call
    result.meta = dict(node.meta)
    call.meta = dict(node.meta)
    record(call, kind="kernel", kernel=KERNEL, site=values.name, **{"with": (scores.name,)})
    node.replace_all_uses_with(result, propagate_meta=False)
    graph.erase_node(node)


def _attention_of(values: fx.Node) -> Attention | None:
    """The attention whose second product a node is, if a kernel can compute it; the softmax over the last dimension."""
    if values.target not in _PRODUCTS or values.meta["val"].dim() not in (3, 4):
        return None
    first, second = (call_arguments(values)[name] for name in _PRODUCTS[values.target])
    softmax = _only_use(first)
    if softmax is None or softmax.target is not aten.softmax.int:
        return None
    given = call_arguments(softmax)
    if given["dim"] not in (-1, softmax.meta["val"].dim() - 1) or given.get("dtype") not in (None, torch.float32):
        return None
    scores, scale = _only_use(given["self"]), 1.0
    while scores is not None and scores.target in (aten.mul.Tensor, aten.div.Tensor):
        source, number = scores.args[:2]
        if not isinstance(number, (int, float)):
            return None
        scale = scale * number if scores.target is aten.mul.Tensor else scale / number
        scores = _only_use(source)
    if scores is None or scores.target not in _PRODUCTS or scale <= 0:
        return None
    query, keys = (call_arguments(scores)[name].meta["val"] for name in _PRODUCTS[scores.target])
    if not query.shape[:-2] == keys.shape[:-2] == second.meta["val"].shape[:-2]:  # broadcast
        return None
    if any(x.dtype != torch.float32 for x in (query, keys, second.meta["val"])):
        return None
    return Attention(scores, values, scale)


def _only_use(node: Any) -> fx.Node | None:
    return node if isinstance(node, fx.Node) and node.op == "call_function" and len(node.users) == 1 else None


def _table(lowering: Lowering, name: str, activations: tuple[Activation, ...], what: str) -> fx.Node:
    """Scales (float32) or zero points (int64) of the four activations, [4]: a constant, or rows of this timestep."""
    of = lowering.scale_of if what == "scale" else lowering.zero_point_of
    dtype = torch.float32 if what == "scale" else torch.int64
    parts = [of(activation) for activation in activations]
    if not any(isinstance(part, fx.Node) for part in parts):
        return lowering.tensor(name, torch.tensor(parts, dtype=dtype))
    nodes = [
        part if isinstance(part, fx.Node) else lowering.early(f"{name}_{place}", torch.tensor(part, dtype=dtype))
        for place, part in enumerate(parts)
    ]
    return lowering.after(max(nodes), aten.stack.default, nodes)
