"""Attention as two products and a softmax is attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import scaled_dot_product_attention as attend

from dmq_fx.lowering import attention as attention_file
from dmq_fx.lowering.attention import decompose_attention
from dmq_fx.program.graph_tools import working_copy
from dmq_fx.tracing import trace

aten = torch.ops.aten
HEADS, QUERIES, KEYS, WIDTH = 2, 10, 7, 4


class Attention(nn.Module):
    """Calls `of` with q [batch, heads, queries, width], k and v [batch, heads, keys, width]."""

    def __init__(self, of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        return self.of(sample, context, context.flip(2))


@pytest.fixture(autouse=True)
def _no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without AMX, whose fused attention multiplies in float32."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def inputs(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, HEADS, QUERIES, WIDTH, generator=generator),
        torch.randn(batch, HEADS, KEYS, WIDTH, generator=generator),
    )


def graph_of(of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> fx.GraphModule:
    sample, context = inputs(2)
    return working_copy(trace(Attention(of).eval(), {"sample": sample, "context": context}).graph_module)


def targets(module: fx.GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


SUPPORTED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": attend,
    "scale": lambda q, k, v: attend(q, k, v, scale=0.3),
    "no dropout": lambda q, k, v: attend(q, k, v, None, 0.0, False),
    "two": lambda q, k, v: attend(attend(q, k, v), k, v),
}


@pytest.mark.parametrize("form", SUPPORTED)
@pytest.mark.parametrize("scores", [2**21, HEADS * KEYS * 4, 1], ids=["whole", "pieces of 4", "single rows"])
def test_computes_the_same(form: str, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_file, "SCORES", scores)
    module = graph_of(SUPPORTED[form])
    expected = [module(*inputs(batch))[0] for batch in (1, 3)]
    count = 2 if form == "two" else 1
    assert decompose_attention(module) == count
    assert aten.scaled_dot_product_attention.default not in targets(module)
    pieces = {2**21: 1, HEADS * KEYS * 4: 3, 1: 10}[scores]
    assert targets(module).count(aten.softmax.int) == count * pieces
    for batch, wanted in zip((1, 3), expected, strict=True):
        torch.testing.assert_close(module(*inputs(batch))[0], wanted, rtol=1e-5, atol=1e-6)


def test_queries_are_cut_into_a_few_pieces_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_file, "SCORES", 1)
    monkeypatch.setattr(attention_file, "CHUNKS", 4)
    module = graph_of(attend)
    expected = module(*inputs())[0]
    decompose_attention(module)
    assert targets(module).count(aten.softmax.int) == 4
    torch.testing.assert_close(module(*inputs())[0], expected, rtol=1e-5, atol=1e-6)


LEFT: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mask": lambda q, k, v: attend(q, k, v, attn_mask=torch.ones(QUERIES, KEYS).tril()),
    "causal": lambda q, k, v: attend(q, k, v, is_causal=True),
    "shared heads": lambda q, k, v: attend(q, k[:, :1], v[:, :1], enable_gqa=True),
    "three dimensions": lambda q, k, v: attend(q[:, 0], k[:, 0], v[:, 0]),
}


@pytest.mark.parametrize("form", LEFT)
def test_other_forms_are_left(form: str) -> None:
    module = graph_of(LEFT[form])
    before = targets(module)
    assert aten.scaled_dot_product_attention.default in before
    assert decompose_attention(module) == 0
    assert targets(module) == before


def test_left_where_the_fused_operator_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    module = graph_of(attend)
    assert decompose_attention(module) == 0
    assert aten.scaled_dot_product_attention.default in targets(module)
