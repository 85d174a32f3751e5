"""A program's graph as the x86_int8 backend runs it."""

from __future__ import annotations

import torch
from torch import Tensor

from dmq_fx.lowering.attention import decompose_attention
from dmq_fx.lowering.bfloat16 import to_bfloat16
from dmq_fx.lowering.fused_norms import fuse_norms
from dmq_fx.lowering.group_norm import decompose_group_norms
from dmq_fx.lowering.int8_sites import lower_sites, reached_kernels
from dmq_fx.lowering.joined import join_linears
from dmq_fx.lowering.kernels import int8_kernels, require_kernels
from dmq_fx.lowering.native import example_inputs
from dmq_fx.lowering.time_part import TimePart, split_time_part
from dmq_fx.lowering.without_kernel import mark_weights
from dmq_fx.program import Program
from dmq_fx.tracing import retarget


def rewrite(
    program: Program,
    dtype: torch.dtype,
    *,
    join: bool = True,
    fuse: bool = True,
    group_norms: bool = True,
    attention: bool | None = None,
) -> TimePart:
    """The program's graph with int8 kernels, split at the timestep; raises BackendError if a site missed its kernel.

    join: products that read one value become one. fuse: norms make integers themselves. group_norms, attention: write
    them out in smaller operations; attention in bfloat16 alone if None.
    """
    retarget(program.graph_module, "cpu")
    expected = int8_kernels(program)
    lower_sites(program, expected)
    if join:
        join_linears(program.graph_module)
    if fuse:
        fuse_norms(program.graph_module)
    mark_weights(program, expected)
    parts = split_time_part(program.graph_module, program.traced)
    graphs = [part.graph for part in (parts.time, parts.body) if part is not None]
    require_kernels(expected, {site: kernel for graph in graphs for site, kernel in reached_kernels(graph).items()})
    if group_norms:
        decompose_group_norms(parts.body, centered=dtype != torch.bfloat16)
    if attention if attention is not None else dtype == torch.bfloat16:
        decompose_attention(parts.body)
    if dtype == torch.bfloat16:
        example = example_inputs(program.traced)
        extra = parts.time(a_timestep(program, example)) if parts.time is not None else ()
        to_bfloat16(parts.body, (*example, *extra))
    return parts


def a_timestep(program: Program, example: tuple[Tensor, ...]) -> Tensor:
    """The first sample's timestep, [1]."""
    position = program.timestep_position
    assert position is not None
    return example[position][:1]
