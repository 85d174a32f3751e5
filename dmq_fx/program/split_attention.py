"""Fused attention written out as two products and the softmax between them.

A fused product keeps its probabilities to itself. Written out, what the second product reads is a value of the graph:
it gets a range and integers like any other, as the methods have it that quantize the softmax (Q-Diffusion,
arXiv:2302.04304; PTQ4DM, arXiv:2211.15736), and both products can run on integers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from dmq_fx.program.graph_tools import call_arguments, nodes_by_name
from dmq_fx.sites import PRODUCTS, Site
from dmq_fx.tracing import TracedModel

aten = torch.ops.aten


def why_not_written_out(site: Site, traced: TracedModel) -> str | None:
    """Why a site's attention cannot be written out; None if it can."""
    if site.op != "attention":
        return "not_split: no fused attention"
    given = call_arguments(nodes_by_name(traced.graph)[site.node])
    mask = given.get("attn_mask")
    if given.get("is_causal") or given.get("enable_gqa") or given.get("dropout_p"):
        return "not_split: causal or grouped attention, or with dropout"
    if given["query"].meta["val"].dtype == torch.float16:
        return "not_split: scores in float16 may be too large before they are scaled"
    if isinstance(mask, fx.Node) and not mask.meta["val"].is_floating_point():
        return "not_split: its mask is not added to the scores"
    return None


def write_out(node: fx.Node, site: Site) -> list[Site]:
    """Replace a call of fused attention, in place, by softmax(q k' * scale + mask) v; its sites, `scores` and `values`.

    The scale is applied to the scores, so that queries and keys are quantized as the layers before have made them.
    """
    given = call_arguments(node)
    query, key, value, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
    width = int(query.meta["val"].shape[-1])
    scale = width**-0.5 if given.get("scale") is None else given["scale"]
    with node.graph.inserting_before(node):
        transposed = _call(node, aten.transpose.int, key, -2, -1)
        scores = _call(node, aten.matmul.default, query, transposed)
        weighted = _call(node, aten.mul.Tensor, scores, scale)
        if mask is not None:
            weighted = _call(node, aten.add.Tensor, weighted, mask)
        softmax = aten.softmax.int if mask is None else aten._safe_softmax.default  # 0 where all of a row is masked
        shares = _call(node, softmax, weighted, -1)
        values = _call(node, aten.matmul.default, shares, value)
    values.meta = dict(node.meta)
    node.replace_all_uses_with(values)
    node.graph.erase_node(node)
    of_scores = site.macs * width // (width + int(value.meta["val"].shape[-1]))
    parts = ((scores, of_scores), (values, site.macs - of_scores))
    return [
        replace(site, name=f"{site.name}.{name}", op="matmul", node=part.name, operands=(0, 1), macs=macs)
        for name, (part, macs) in zip(PRODUCTS, parts, strict=True)
    ]


def _call(place: fx.Node, target: Any, *arguments: Any) -> fx.Node:
    """A call with the facts of the node that it is written out of, and the shape of its own value."""
    found = place.graph.call_function(target, arguments)
    values = (x.meta["val"] if isinstance(x, fx.Node) else x for x in arguments)
    found.meta = {**place.meta, "val": target(*values)}
    return found
