"""Attention written out as two products: the same numbers, two sites, and probabilities that are quantized."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmq_fx.program.split import split_sites
from dmq_fx.program.split_attention import why_not_written_out
from dmq_fx.roles import find_sites
from dmq_fx.sites import Site, part_of
from dmq_fx.tracing import TracedModel, trace

HEADS, TOKENS, WIDTH = 2, 5, 8


class Product(nn.Module):
    """Fused attention of a sample [batch, heads, tokens, width] with itself, and options of its call."""

    def __init__(self, mask: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.options = options

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        key = sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)
        return nn.functional.scaled_dot_product_attention(sample, key, sample.cos(), self.mask, **self.options)


def traced(module: nn.Module) -> TracedModel:
    return trace(module.eval(), {"sample": torch.zeros(2, HEADS, TOKENS, WIDTH), "timestep": torch.tensor([1, 2])})


def written_out(model: TracedModel) -> tuple[TracedModel, tuple[Site, ...]]:
    sites = find_sites(model)
    return split_sites(model, sites, {site.name for site in sites if site.op == "attention"})


@pytest.mark.parametrize(
    "module",
    [Product(), Product(scale=0.5), Product(torch.randn(TOKENS, TOKENS)), Product(torch.randn(1, 1, 1, TOKENS))],
    ids=["plain", "scale", "mask", "mask by key"],
)
def test_it_computes_the_same(module: nn.Module) -> None:
    model = traced(module)
    rewritten, (scores, values) = written_out(model)
    given = (torch.randn(2, HEADS, TOKENS, WIDTH), torch.tensor([900, 900]))
    expected, found = (each.graph_module(*given) for each in (model, rewritten))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (scores.name, values.name) == ("attention.scores", "attention.values")
    assert scores.op == values.op == "matmul" and scores.roles == values.roles == ("attention_matmul",)
    assert scores.macs + values.macs == find_sites(model)[0].macs == 2 * HEADS * TOKENS * TOKENS * WIDTH


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Product(is_causal=True), "causal"),
        (Product(torch.ones(TOKENS, TOKENS, dtype=torch.bool)), "not added to the scores"),
    ],
    ids=["causal", "boolean mask"],
)
def test_attention_that_stays_fused_says_why(module: nn.Module, why: str) -> None:
    model = traced(module)
    (site,) = find_sites(model)
    assert why in (why_not_written_out(site, model) or "")
    assert why_not_written_out(replace(site, op="matmul"), model) == "not_split: no fused attention"


@pytest.mark.parametrize("name", ["ddpm", "sd"])
def test_a_unet_computes_the_same(architectures: ModuleType, name: str) -> None:
    """Self and cross attention, keys of another length."""
    model = architectures.traced_tiny(name)
    rewritten, sites = written_out(model)
    whole = [site for site in find_sites(model) if site.op == "attention"]
    parts = [site for site in sites if site.op == "matmul"]
    assert whole and len(parts) == 2 * len(whole)
    assert sum(site.macs for site in parts) == sum(site.macs for site in whole)
    given = tuple(torch.randn_like(x) if x.is_floating_point() else x for x in model.example)
    expected, found = (each.graph_module(*given) for each in (model, rewritten))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Viewed(Product):
    """What follows the product takes its memory for granted: tokens before heads."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return super().forward(sample, timestep).transpose(1, 2).contiguous().view(sample.shape[0], TOKENS, -1)


def test_views_of_the_result() -> None:
    model = traced(Viewed())
    given = (torch.randn(3, HEADS, TOKENS, WIDTH), torch.tensor([900] * 3))
    expected, found = (each.graph_module(*given) for each in (model, written_out(model)[0]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_row_without_keys_stays_zero() -> None:
    mask = torch.zeros(TOKENS, TOKENS)
    mask[2] = -torch.inf
    model = traced(Product(mask))
    given = (torch.randn(2, HEADS, TOKENS, WIDTH), torch.tensor([900, 900]))
    expected, found = (each.graph_module(*given) for each in (model, written_out(model)[0]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_scores_in_float16_are_left_to_the_fused_product() -> None:
    sample = torch.zeros(2, HEADS, TOKENS, WIDTH, dtype=torch.float16)
    model = trace(Product().half().eval(), {"sample": sample, "timestep": torch.tensor([1, 2], dtype=torch.float16)})
    (site,) = find_sites(model)
    assert "too large" in (why_not_written_out(site, model) or "")


def test_a_name_alone_makes_no_part() -> None:
    assert part_of("blocks.0.attention.scores", ["blocks.0.attention"]) == "scores"
    assert part_of("blocks.0.attention.0", ["blocks.0.attention"]) is None
    assert part_of("blocks.0.attention.scores", ["blocks.1.attention"]) is None
