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

from dmq_fx.lowering.kernels import Kernel
from dmq_fx.program import Program
from dmq_fx.program.graph_tools import finish, record

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed
VALUE = "value"
"""Fact of a weight's dequantize node: native code holds its value (`fold.fold_dequantized_weights`)."""


def hide_from_patterns(program: Program, kernels: Mapping[str, Kernel]) -> None:
    """Change a lowered program's graph, in place: the same numbers, and nothing that Inductor knows as quantized.

    Quantize nodes with one scale become the arithmetic that they stand for. Weights are marked that are read beside
    quantized activations: few as a rule. Others (weight-only schemes) stay integers, which take less memory.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is qd.quantize_per_tensor.default:
            _write_out(node)
    bare = {p.site.weight for p in program.plan.sites if p.weight and p.activation and not kernels[p.name].name}
    for node in graph.nodes:
        facts = node.meta.get("dmq", {})
        if facts.get("kind") == "weight" and facts["weight"] in bare:
            record(node, **{VALUE: True})
    finish(program.graph_module)


def _write_out(node: fx.Node) -> None:
    """`quantize_per_tensor`, operation by operation as torch defines it."""
    source, scale, zero_point, low, high, dtype = node.args
    steps = (
        (aten.to.dtype, torch.float32),
        (aten.mul.Tensor, 1.0 / float(scale)),  # type: ignore[arg-type]
        (aten.round.default,),
        (aten.add.Tensor, zero_point),
        (aten.clamp.default, low, high),
        (aten.to.dtype, dtype),
    )
    with node.graph.inserting_before(node):
        for target, *arguments in steps:
            source = record(node.graph.call_function(target, (source, *arguments)), kind="integers")
    node.replace_all_uses_with(source)  # type: ignore[arg-type]
    node.graph.erase_node(node)
