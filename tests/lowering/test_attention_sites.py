"""Attention that is written out runs on integers in one call, and says why where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    STATIC,
    W8,
    c_calls,
    converted,
    copy_of,
    grouped,
    inputs,
    lower,
    needs_vnni,
    traced,
)
from torch import Tensor, nn

from dmq_fx.lowering import parity
from dmq_fx.lowering.attention_sites import written_out_attention
from dmq_fx.lowering.int8_attention import LARGEST_KEYS, LARGEST_WIDTH, AttentionParts, attention_parts
from dmq_fx.lowering.int8_sites import reached_kernels
from dmq_fx.lowering.kernels import int8_kernels
from dmq_fx.lowering.native import load_package, write_package
from dmq_fx.lowering.parity import TOLERANCE, site_errors
from dmq_fx.lowering.rewrite import rewrite
from dmq_fx.program import Program
from dmq_fx.program.split import split_sites
from dmq_fx.recipe.language import ActivationSpec
from dmq_fx.roles import find_sites
from dmq_fx.tracing import TracedModel

ATTENTION = "int8 attention"
SIX_BITS = ActivationSpec(bits=6, symmetric=True)
SPECS = {"static": STATIC, "per timestep": BY_TIMESTEP, "6 bits symmetric": SIX_BITS}


class Attention(nn.Module):
    """Attention over the pixels, by `product(q, k, v)`, which takes [batch, heads, tokens, width]."""

    def __init__(self, product: Any = nn.functional.scaled_dot_product_attention, heads: int = 2) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.out = nn.Linear(CHANNELS, CHANNELS)
        self.product, self.heads = product, heads

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        x = (sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in self.qkv)
        return self.out(self.product(q, k, v).transpose(1, 2).flatten(2))


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * 0.5) @ k.transpose(2, 3) / 1.5).softmax(3) @ v


def flat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return torch.bmm((torch.bmm(q, k.transpose(1, 2)) * 0.5).softmax(-1), v).unflatten(0, shape[:2])


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3) + torch.ones(k.shape[2])).softmax(-1) @ v


def read_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    shares = (q @ k.transpose(2, 3)).softmax(-1)
    return shares @ v + shares.mean()


def over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3)).softmax(-2) @ v


def program_of(model: TracedModel, spec: ActivationSpec | None, *, split: bool = True) -> Program:
    sites = find_sites(model)
    if split:
        model, sites = split_sites(model, sites, {site.name for site in sites if site.op == "attention"})
    return grouped(model, lambda site: (W8, BY_TIMESTEP) if site.weight else (None, spec), sites)


@pytest.fixture(scope="module", params=["fused", "by hand", "flat"])
def model(request: pytest.FixtureRequest) -> TracedModel:
    product = {"fused": nn.functional.scaled_dot_product_attention, "by hand": by_hand, "flat": flat}[request.param]
    return traced(Attention(product))


@needs_vnni
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_both_products_are_those_of_fake_quantization(model: TracedModel, spec: ActivationSpec) -> None:
    pair = lower(converted(program_of(model, spec)))
    reached = reached_kernels(pair.lowered.graph_module.graph)
    assert sorted(reached.values()).count(ATTENTION) == 2 and len(reached) == 6
    for timestep in (900, 120):
        errors = site_errors(pair.fake, pair.lowered, inputs(timestep))
        assert {site: error for site, error in errors.items() if not error < TOLERANCE} == {} and len(errors) == 6
        given = inputs(timestep, 3)
        with torch.no_grad():
            found, expected = (each.graph_module(*given)[0] for each in (pair.lowered, pair.fake))
        assert float((found - expected).abs().max() / expected.abs().max()) < 0.05


@needs_vnni
def test_ranges_of_two_kinds() -> None:
    """Queries and keys with one range, probabilities and values with one per timestep."""
    program = program_of(traced(Attention()), None)
    kinds = {"attention.scores": STATIC, "attention.values": BY_TIMESTEP}
    model, sites = program.traced, [planned.site for planned in program.plan.sites]
    program = grouped(model, lambda site: (W8, STATIC) if site.weight else (None, kinds[site.name]), sites)
    pair = lower(converted(program))
    for timestep in (900, 100):
        assert max(site_errors(pair.fake, pair.lowered, inputs(timestep)).values()) < TOLERANCE


@pytest.mark.parametrize(
    ("product", "spec", "split", "why"),
    [
        (nn.functional.scaled_dot_product_attention, STATIC, False, "the pass split_attention quantizes that, too"),
        (masked, STATIC, True, "not of attention (a mask?)"),
        (read_twice, STATIC, True, "not of attention"),
        (over_queries, STATIC, True, "not of attention"),
        (by_hand, ActivationSpec(bits=8, per_timestep=True), True, ""),
    ],
    ids=["fused", "mask", "probabilities read twice", "softmax over queries", "by hand"],
)
def test_why_it_has_no_kernel(product: Any, spec: ActivationSpec, split: bool, why: str) -> None:
    found = int8_kernels(program_of(traced(Attention(product)), spec, split=split))
    products = [kernel for name, kernel in found.items() if name.rpartition(".")[0] != "qkv" and name != "out"]
    assert products and all(kernel.name == (None if why else ATTENTION) for kernel in products)
    assert all(why in kernel.reason for kernel in products)


def test_one_product_in_full_precision() -> None:
    model = traced(Attention(by_hand))
    names = [site.name for site in find_sites(model) if not site.weight]
    program = grouped(
        model, lambda site: (W8, STATIC) if site.weight else (None, STATIC if site.name == names[0] else None)
    )
    found = int8_kernels(program)
    assert found[names[0]].reason == "the other product of this attention is in full precision"
    assert found[names[1]].reason == "full precision"


def test_too_many_keys() -> None:
    program = program_of(traced(Attention()), STATIC)
    (pair, *_) = written_out_attention(program.traced.graph).values()
    shape = pair.scores.meta["val"].shape
    assert shape[-1] < LARGEST_KEYS
    pair.scores.meta["val"] = torch.empty((*shape[:-1], LARGEST_KEYS + 1), device="meta")
    reasons = [kernel.reason for name, kernel in int8_kernels(program).items() if name.startswith("attention.")]
    assert len(reasons) == 2 and all("may not fit int32" in reason for reason in reasons)


@needs_vnni
@pytest.mark.parametrize("spoilt", ["scores", "probabilities", "output"])
def test_a_kernel_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch, spoilt: str) -> None:
    def spoil(*arguments: Any) -> AttentionParts:
        parts = attention_parts(*arguments)
        values = {name: value.clone() for name, value in parts._asdict().items()}
        if spoilt == "scores":
            values[spoilt].view(-1)[3] *= 1.001
        else:
            values[spoilt][0, 0, 0, 0] += 1
        return AttentionParts(**values)

    pair = lower(converted(program_of(traced(Attention()), STATIC)))
    monkeypatch.setattr(parity, "attention_parts", spoil)
    errors = site_errors(pair.fake, pair.lowered, inputs(900))
    wrong = "attention.scores" if spoilt == "scores" else "attention.values"
    assert errors[wrong] > TOLERANCE


@pytest.mark.parametrize("product", [nn.functional.scaled_dot_product_attention, by_hand, flat])
@needs_vnni
def test_views_behind_attention(product: Any) -> None:
    """Memory of its result lies otherwise than the traced product's; one sample in one head, too."""

    class Viewed(Attention):
        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            x = (sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)).flatten(2).transpose(1, 2)
            q, k, v = (layer(x).view(x.shape[0], -1, self.heads, 3).transpose(1, 2) for layer in self.qkv)
            mixed = self.product(q, k, v)
            return self.out(mixed.transpose(1, 2).contiguous().view(x.shape[0], -1, CHANNELS)) + mixed.sum()

    pair = lower(converted(program_of(traced(Viewed(product)), STATIC)))
    for batch in (1, 2):
        assert max(site_errors(pair.fake, pair.lowered, inputs(500, batch)).values()) < TOLERANCE


@needs_vnni
def test_three_dimensions_of_one_sample() -> None:
    """A view of what `bmm` gives, and layers that would broadcast."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(CHANNELS, CHANNELS)

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            x = (sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)).flatten(2).transpose(1, 2)
            mixed = torch.bmm((torch.bmm(x, x.transpose(1, 2)) * 0.5).softmax(-1), x.cos())
            return self.out(mixed.view(-1, CHANNELS)).view(x.shape).transpose(1, 2).reshape(sample.shape)

    pair = lower(converted(program_of(traced(Single()), STATIC)))
    for batch in (1, 3):
        errors = site_errors(pair.fake, pair.lowered, inputs(500, batch))
        assert len(errors) == 3 and max(errors.values()) < TOLERANCE


def test_a_product_of_two_attentions_belongs_to_the_first() -> None:
    class Chain(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            x = (sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)).flatten(2)
            first = (x @ x.cos().transpose(1, 2)).softmax(-1) @ x[:, :, :CHANNELS].sin()
            return first.softmax(-1) @ x.tanh()

    found = list(int8_kernels(program_of(traced(Chain()), STATIC)).values())
    assert [kernel.name for kernel in found] == [ATTENTION, ATTENTION, None]
    assert "not of attention" in found[-1].reason


def test_queries_too_wide() -> None:
    program = program_of(traced(Attention()), STATIC)
    (pair, *_) = written_out_attention(program.traced.graph).values()
    query: Any = pair.scores.args[0]
    query.meta["val"] = torch.empty((*query.meta["val"].shape[:-1], LARGEST_WIDTH + 1), device="meta")
    reasons = [kernel.reason for name, kernel in int8_kernels(program).items() if name.startswith("attention.")]
    assert reasons == [f"its queries are wider than {LARGEST_WIDTH}"] * 2


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fused, self.flat = Attention(), Attention(flat)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return self.fused(sample, timestep) + self.flat(sample, timestep)


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_code(tmp_path: Path, dtype: torch.dtype) -> None:
    """Any batch by the one package."""
    pair = lower(converted(program_of(traced(Both()), BY_TIMESTEP)))
    parts = rewrite(copy_of(pair.fake), dtype)
    assert parts.time is not None
    extra = parts.time(torch.tensor([500]))
    write_package(tmp_path, parts.body, pair.fake.traced, extra, {})
    assert c_calls(tmp_path, "int8_attention") == 2
    code = load_package(tmp_path)[0]
    for batch in (1, 3):
        given = inputs(500, batch)
        with torch.no_grad():
            (found,), expected = code(*given, *extra), pair.fake.graph_module(*given)[0]
        error = float((found - expected).norm() / expected.norm())
        assert error < (0.05 if dtype == torch.bfloat16 else 1e-3)
