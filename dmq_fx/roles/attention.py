"""Roles around attention products: `attention_matmul`, `attention_qkv`, `attention_out`."""

from __future__ import annotations

from torch import fx

from dmq_fx.roles.dataflow import DataFlow
from dmq_fx.roles.values import aten, is_activation, is_arithmetic, is_norm, is_rearrangement, packet

_NORM_PARTS = frozenset({aten.pow, aten.mean, aten.rsqrt, aten.sqrt, aten.neg, aten.pad, aten.constant_pad_nd})
_JOINS = frozenset({aten.cat, aten.stack, aten.slice_scatter, aten.select_scatter})
_COMPLEX = frozenset({aten.view_as_complex, aten.view_as_real, aten.complex})


def attention_products(flow: DataFlow) -> set[fx.Node]:
    """Products of two activations: fused attention, and the matmuls of attention that is written out."""
    return {node for node, operation in flow.operations.items() if not operation.weighted}


def attention_qkv_sites(flow: DataFlow, products: set[fx.Node]) -> set[fx.Node]:
    """Sites whose outputs reach an operand of a product through reshapes, norms, rotary embeddings or a concat only."""
    found = set()
    for product in products:
        for operand in flow.operations[product].inputs:
            for node in flow.backward(operand, lambda node: _prepares_operand(flow, node)):
                if node in flow.operations and flow.operations[node].weighted:
                    found.add(node)
    return found


def attention_out_sites(flow: DataFlow, products: set[fx.Node]) -> set[fx.Node]:
    """The first sites after a product: nothing but reshapes, norms, a softmax's or a gate's product stands between."""
    found = set()
    for product in products:
        for node in flow.forward(product, lambda node: _leaves_product(flow, node)):
            if node in flow.operations and flow.operations[node].weighted:
                found.add(node)
    return found


def _prepares_operand(flow: DataFlow, node: fx.Node) -> bool:
    if node in flow.operations:
        return False
    if is_rearrangement(node) or is_norm(node) or packet(node) in _NORM_PARTS | _JOINS | _COMPLEX:
        return True
    # linear attention (Sana) applies a ReLU to queries and keys
    return is_arithmetic(node) or packet(node) is aten.relu


def _leaves_product(flow: DataFlow, node: fx.Node) -> bool:
    """On the way out of a product; a sum with other features is a residual connection, where the attention ends."""
    if node in flow.operations:
        return False
    if is_rearrangement(node) or is_norm(node) or packet(node) in _NORM_PARTS | _JOINS:
        return True
    return packet(node) in (aten.mul, aten.div) or is_activation(node)
