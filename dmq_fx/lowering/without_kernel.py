"""Sites that no int8 kernel computes, written so that Inductor's own patterns find none for them either.

Inductor knows quantized models by the operators of `quantized_decomposed`. Of those that are left for sites without a
kernel it would make kernels that do something else: of a dequantized activation and weight one that fails for unsigned
weights, and of `quantize_per_tensor` behind a kernel an output of that kernel, which is clamped to eight bits
whatever the grid was (torch 2.13, `torch/_inductor/fx_passes/quantization.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401  (registers the operators)

from dmq_fx.lowering.fold import fold_nodes
from dmq_fx.lowering.integers import integers_before
from dmq_fx.lowering.kernels import Kernel
from dmq_fx.program import Program
from dmq_fx.program.graph_tools import record

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed
BARE = "bare"
"""Fact of a weight's dequantize node: read beside quantized activations by a site without a kernel."""


def mark_weights(program: Program, kernels: Mapping[str, Kernel]) -> None:
    """Mark, in a lowered program's graph, the weights that `hide_from_patterns` is to replace."""
    bare = {p.site.weight for p in program.plan.sites if p.weight and p.activation and not kernels[p.name].name}
    for node in program.graph_module.graph.nodes:
        facts = node.meta.get("dmq", {})
        if facts.get("kind") == "weight" and facts["weight"] in bare:
            record(node, **{BARE: True})


def hide_from_patterns(graph_module: fx.GraphModule) -> None:
    """Change a graph for the compiler, in place: the same numbers, and nothing that Inductor knows as quantized.

    Quantize nodes with one scale become the arithmetic that they stand for, and the weights that are marked become
    their values: few as a rule. Those of weight-only schemes stay integers, which take less memory.
    """
    nodes = list(graph_module.graph.nodes)
    for node in nodes:
        if node.target is qd.quantize_per_tensor.default:
            _write_out(node)
    fold_nodes(graph_module, [node for node in nodes if node.meta.get("dmq", {}).get(BARE)], "dmq_dequantized")


def _write_out(node: fx.Node) -> None:
    """`quantize_per_tensor`, operation by operation as torch defines it."""
    source, scale, zero_point, low, high, dtype = node.args
    with node.graph.inserting_before(node):
        source = record(node.graph.call_function(aten.to.dtype, (source, torch.float32)), kind="integers")
    integers = integers_before(node, source, 1.0 / float(scale), zero_point, (low, high), dtype)  # type: ignore[arg-type]
    node.replace_all_uses_with(integers)
    node.graph.erase_node(node)
