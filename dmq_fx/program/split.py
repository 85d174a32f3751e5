"""Split sites that read a decoder/encoder concat: each half gets ranges and weights of its own.

conv(cat(a, b), W) = conv(a, W[:, :ca]) + conv(b, W[:, ca:]), as Q-Diffusion's split (arXiv:2302.04304, section 4.3) and
integer kernels have it. The rewrite is one of the full-precision graph: what comes after sees two ordinary sites. Fused
attention becomes two sites likewise (`split_attention`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.pass_api import PassResult
from dmq_fx.planning import Plan, PlannedSite
from dmq_fx.program.graph_tools import (
    call_arguments,
    finish,
    get_tensor,
    let_views_copy,
    nodes_by_name,
    set_buffer,
    working_copy,
)
from dmq_fx.program.program import Program
from dmq_fx.program.split_attention import write_out
from dmq_fx.sites import HALVES, Site
from dmq_fx.tracing import TracedModel

aten = torch.ops.aten


def why_not_split(site: Site, sites: Sequence[Site], traced: TracedModel) -> str | None:
    """Why a site cannot be split; None if it can."""
    if site.split is None or site.weight is None:
        return "not_split: the input is no concat of decoder and encoder features"
    if Counter(other.weight for other in sites)[site.weight] > 1:
        return "not_split: its weight is shared with another site"
    if call_arguments(nodes_by_name(traced.graph)[site.node]).get("groups", 1) != 1:
        return "not_split: a grouped convolution"
    return None


def split_sites(
    traced: TracedModel, sites: Sequence[Site], names: Collection[str]
) -> tuple[TracedModel, tuple[Site, ...]]:
    """A copy of the graph in which each site of `names` is two, `NAME.decoder` and `NAME.encoder`, and their sum.

    The halves have weights `NAME.decoder.weight` [out, decoder channels, ...] and `NAME.encoder.weight`; the bias
    stays with the decoder's. Fused attention becomes `NAME.scores` and `NAME.values` (`write_out`). Returns the graph
    and its sites, in execution order.
    """
    if not names:
        return traced, tuple(sites)
    module = working_copy(traced.graph_module)
    nodes = nodes_by_name(module.graph)
    found: list[Site] = []
    for site in sites:
        if site.name not in names:
            found.append(site)
        elif site.op == "attention":
            found += write_out(nodes[site.node], site)
            let_views_copy(module)
        else:
            found += _split(module, nodes[site.node], site)
    finish(module)
    return replace(traced, graph_module=module), tuple(found)


def split_in_plan(program: Program, reasons: Mapping[str, str | None]) -> PassResult:
    """Split sites of a program, in place. reasons: why each must stay as it is, None if it need not, by name."""
    names = [name for name, reason in reasons.items() if reason is None]
    sites = tuple(planned.site for planned in program.plan.sites)
    traced, split = split_sites(program.traced, sites, names)
    by_name = program.plan.by_name
    plan = Plan(tuple(_planned(site, by_name) for site in split), program.plan.parameters)
    program.rewrite(traced, plan, names)
    return PassResult(tuple(names), {"left": {name: reason for name, reason in reasons.items() if reason}})


def _planned(site: Site, by_name: dict[str, PlannedSite]) -> PlannedSite:
    found = by_name.get(site.name) or by_name[site.name.rpartition(".")[0]]
    return replace(found, site=site)


def _split(module: fx.GraphModule, node: fx.Node, site: Site) -> list[Site]:
    assert site.split is not None and site.weight is not None
    weight = get_tensor(module, site.weight).detach()
    x, weight_node, *rest = node.args
    assert isinstance(x, fx.Node) and isinstance(weight_node, fx.Node)
    axis = x.meta["val"].dim() - 1 if site.op == "linear" else 1
    parts = ((0, site.split), (site.split, weight.shape[1]))
    results: list[Site] = []
    outputs: list[fx.Node] = []
    graph = module.graph
    with graph.inserting_before(node):
        inputs = _halves(graph, x, axis, parts)
        for half, value, (start, stop) in zip(HALVES, inputs, parts, strict=True):
            name = f"{site.name}.{half}"
            set_buffer(module, f"{name}.weight", weight[:, start:stop].contiguous())
            part = graph.get_attr(f"{name}.weight")
            part.meta = {"val": weight_node.meta["val"][:, start:stop]}
            first = half == HALVES[0]
            arguments = (value, part, *(rest if first else [None, *rest[1:]]))
            output = graph.call_function(node.target, arguments, dict(node.kwargs))  # type: ignore[arg-type]
            output.meta = dict(node.meta)
            outputs.append(output)
            results.append(_part(site, name, output, weight, stop - start, keeps_bias=first))
        total = graph.call_function(aten.add.Tensor, tuple(outputs))
    total.meta = dict(node.meta)
    node.replace_all_uses_with(total)
    graph.erase_node(node)
    return results


def _halves(
    graph: fx.Graph, x: fx.Node, axis: int, parts: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[fx.Node, ...]:
    """The two halves of a value: what was concatenated, or slices where something stands between."""
    if x.target == aten.cat.default:
        sources: Any = x.args[0]
        sizes = tuple(source.meta["val"].shape[axis] for source in sources)
        if sizes == tuple(stop - start for start, stop in parts):
            return tuple(sources)
    slices = []
    for start, stop in parts:
        piece = graph.call_function(aten.slice.Tensor, (x, axis, start, stop))
        piece.meta = {**x.meta, "val": x.meta["val"].narrow(axis, start, stop - start)}
        slices.append(piece)
    return tuple(slices)


def _part(site: Site, name: str, node: fx.Node, weight: Tensor, channels: int, *, keeps_bias: bool) -> Site:
    shape = (weight.shape[0], channels, *weight.shape[2:])
    return replace(
        site,
        name=name,
        node=node.name,
        weight=f"{name}.weight",
        bias=site.bias if keeps_bias else None,
        weight_shape=shape,
        macs=site.macs * channels // weight.shape[1],
        split=None,
    )
