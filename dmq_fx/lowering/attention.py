"""Attention in bfloat16 as two products and a softmax, where that is faster than the fused operator.

torch's fused attention for CPUs multiplies in float32 unless the CPU has matrix tiles (AMX): on a CPU that has bfloat16
dot products only, oneDNN's products of matrices are about four times as fast (docs/results.md).
"""

from __future__ import annotations

import torch
from torch import fx

from dmq_fx.program.graph_tools import call_arguments, finish

aten = torch.ops.aten
SCORES = 2**21
"""Scores of one sample that are computed at once: they should stay in the CPU's cache."""

CHUNKS = 16
"""The most pieces that the queries of one attention are cut into."""


def decompose_attention(graph_module: fx.GraphModule) -> int:
    """Replace attention without masks, in place; how many were replaced.

    softmax((q * scale) k') v, for pieces of the queries where there are many. Sizes must be known but for the batch.
    """
    if torch.cpu._is_amx_tile_supported():
        return 0
    nodes = [n for n in graph_module.graph.nodes if n.target is aten.scaled_dot_product_attention.default]
    replaced = sum(_decompose(node) for node in nodes)
    finish(graph_module)
    return replaced


def _decompose(node: fx.Node) -> bool:
    given = call_arguments(node)
    query, key, value = given["query"], given["key"], given["value"]
    if (
        given.get("attn_mask") is not None
        or given.get("dropout_p")
        or given.get("is_causal")
        or given.get("enable_gqa")
    ):
        return False
    sizes = [*query.meta["val"].shape[1:], *key.meta["val"].shape[1:]]
    if len(sizes) != 6 or not all(isinstance(size, int) for size in sizes):
        return False
    heads, queries, width, _, keys, _ = sizes
    scale = given.get("scale") or width**-0.5
    rows = max(SCORES // (heads * keys), -(-queries // CHUNKS), 1)
    graph = node.graph
    with graph.inserting_before(node):
        scaled = graph.call_function(aten.mul.Tensor, (query, scale))
        transposed = graph.call_function(aten.transpose.int, (key, -2, -1))
        parts = []
        for start in range(0, queries, rows):
            piece = scaled
            if rows < queries:
                piece = graph.call_function(aten.slice.Tensor, (scaled, 2, start, min(start + rows, queries)))
            scores = graph.call_function(aten.matmul.default, (piece, transposed))
            shares = graph.call_function(aten.softmax.int, (scores, -1))
            parts.append(graph.call_function(aten.matmul.default, (shares, value)))
        result = parts[0] if len(parts) == 1 else graph.call_function(aten.cat.default, (parts, 2))
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result, propagate_meta=False)
    graph.erase_node(node)
    return True
