"""bfloat16 between integer kernels, float32 where integers are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from integers import values_of
from small_architectures import architecture_inputs, quantized_architecture
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    SIZE,
    STATIC,
    TIMESTEPS,
    W4,
    W8,
    Specs,
    converted,
    copy_of,
    grouped,
    inputs,
    kernel_nodes,
    lower,
    needs_vnni,
    scale_channels,
    traced,
)
from torch import Tensor, fx, nn

from dmq_fx.lowering.attention import decompose_attention
from dmq_fx.lowering.bfloat16 import to_bfloat16
from dmq_fx.lowering.fold import fold_packed_weights
from dmq_fx.lowering.kernels import int8_kernels
from dmq_fx.lowering.module import LoweredModule
from dmq_fx.lowering.rewrite import rewrite
from dmq_fx.recipe.language import ActivationSpec, WeightSpec
from dmq_fx.sites import Site
from dmq_fx.tracing import TracedModel

pytestmark = needs_vnni
aten = torch.ops.aten
HALF = torch.bfloat16
FAMILIES = ("ddpm-class", "sdxl", "pixart-alpha", "flux", "wan")


class Block(nn.Module):
    """Two residual blocks; the second one's site `plain` may stay in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(CHANNELS, CHANNELS)
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = nn.GroupNorm(2, CHANNELS)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.layer_norm = nn.LayerNorm(CHANNELS)
        self.plain = nn.Linear(CHANNELS, CHANNELS)
        self.linear = nn.Linear(CHANNELS, CHANNELS)
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        emb = self.time((timestep[:, None] / 1000).expand(-1, CHANNELS).sin())
        h = self.first(sample)
        h = h + self.conv(nn.functional.silu(self.norm(h)) + emb[:, :, None, None]) + sample
        tokens = h.flatten(2).transpose(1, 2)
        tokens = tokens + self.linear(nn.functional.gelu(self.plain(self.layer_norm(tokens))))
        h = torch.cat([h, tokens.transpose(1, 2).unflatten(2, (SIZE, SIZE))], 1)
        return self.last(h[:, :CHANNELS] + h[:, CHANNELS:] + sample)


@pytest.fixture(scope="module")
def model() -> TracedModel:
    return traced(Block())


def halved(model: TracedModel, specs: Any, *, shifts: int = 0) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A lowered graph in float32 and in bfloat16."""
    program = grouped(model, specs)
    scale_channels(program, gamma=bool(shifts), shifts=shifts)
    exact = lower(converted(program)).lowered
    half = copy_of(exact)
    to_bfloat16(half.graph_module, inputs(500))
    half.graph_module.graph.lint()
    return exact.graph_module, half.graph_module


def outer_in_float(spec: ActivationSpec) -> Any:
    def of(site: Site) -> Specs:
        return (None, None) if site.name == "plain" else (W8, spec)

    return of


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def types(module: fx.GraphModule, kind: str, given: Sequence[Tensor] = ()) -> dict[str, torch.dtype]:
    """Types of the tensors that nodes of a kind give."""
    values = values_of(module, given or inputs(500))
    nodes = [node for node in module.graph.nodes if node.meta.get("dmq", {}).get("kind") == kind]
    return {node.name: values[node.name].dtype for node in nodes if isinstance(values[node.name], Tensor)}


@pytest.mark.parametrize("spec", [STATIC, BY_TIMESTEP], ids=["static", "per timestep"])
@pytest.mark.parametrize("shifts", [0, 1, len(TIMESTEPS)], ids=["plain", "shared shifts", "shifts by timestep"])
def test_close_to_float32(model: TracedModel, spec: ActivationSpec, shifts: int) -> None:
    weight = W4 if shifts else W8
    exact, half = halved(model, (weight, spec), shifts=shifts)
    for timestep in (900, 100):
        for batch in (1, 3):
            given = inputs(timestep, batch)
            with torch.no_grad():
                (found,), (expected,) = half(*given), exact(*given)
            assert found.dtype == torch.float32 and found.shape == expected.shape
            assert 0 < error(found, expected) < 3e-2


def test_kernels_write_bfloat16(model: TracedModel) -> None:
    exact, half = halved(model, outer_in_float(BY_TIMESTEP))
    inner = {"conv", "linear"}
    for module, dtype in ((exact, torch.float32), (half, HALF)):
        values = values_of(module, inputs(500))
        calls = kernel_nodes(module.graph)
        assert inner < set(calls)
        assert {values[calls[name].name].dtype for name in inner} == {dtype}


@pytest.mark.parametrize("spec", [STATIC, BY_TIMESTEP], ids=["static", "per timestep"])
@pytest.mark.parametrize("shifts", [0, len(TIMESTEPS)], ids=["plain", "shifts by timestep"])
def test_integers_are_made_in_float32(model: TracedModel, spec: ActivationSpec, shifts: int) -> None:
    """x / s rounded to bfloat16's 8 bits before it is rounded to an integer would be rounded twice."""
    _, half = halved(model, (W4, spec), shifts=shifts)
    values = values_of(half, inputs(500))
    roundings = [node for node in half.graph.nodes if node.target == aten.round.default]
    assert len(roundings) >= 6
    sources = {str(node): values[node.all_input_nodes[0].name].dtype for node in roundings}
    assert {name: dtype for name, dtype in sources.items() if dtype != torch.float32} == {}
    assert set(types(half, "table").values()) <= {torch.float32, torch.int64}


def test_sites_that_are_not_lowered(model: TracedModel) -> None:
    """Their weights are dequantized in float32, and meet activations in bfloat16."""
    left = WeightSpec(bits=8, symmetric=False)
    exact, half = halved(model, lambda site: (left if site.name in ("conv", "linear") else W8, BY_TIMESTEP))
    assert not {"conv", "linear"} & set(kernel_nodes(half.graph))
    for timestep in (900, 100):
        given = inputs(timestep)
        with torch.no_grad():
            assert error(half(*given)[0], exact(*given)[0]) < 3e-2
    assert set(types(half, "weight").values()) == {torch.float32}


def test_parameters(model: TracedModel) -> None:
    """Weights in bfloat16, but for those of norms and of integer kernels."""
    exact, half = halved(model, outer_in_float(STATIC))
    before, after = exact.state_dict(), half.state_dict()
    assert set(before) == set(after)
    assert after["plain.weight"].dtype == after["plain.bias"].dtype == HALF
    norms = [name for name in after if "norm" in name]
    assert len(norms) == 4 and all(after[name].dtype == torch.float32 for name in norms)
    for name in after:
        if "int8" in name:
            assert torch.equal(after[name], before[name])
    assert before["plain.weight"].dtype == torch.float32


def test_a_value_is_cast_once(model: TracedModel) -> None:
    _, half = halved(model, outer_in_float(STATIC))
    casts = [node for node in half.graph.nodes if node.meta.get("dmq", {}).get("kind") == "cast"]
    pairs = [(str(node.args[0]), node.args[1]) for node in casts]
    assert ("sample", HALF) in pairs and len(pairs) == len(set(pairs))


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    """As close to full precision as fake quantization, for samples of several timesteps."""
    program = quantized_architecture(name)
    expected = sum(kernel.name is not None for kernel in int8_kernels(program).values())
    parts = rewrite(copy_of(program), HALF)
    assert parts.time is not None
    found = len(kernel_nodes(parts.time.graph)) + len(kernel_nodes(parts.body.graph))
    assert found == expected > 0.75 * len(program.plan.sites)
    lowered = LoweredModule(program.traced, fold_packed_weights(parts.body), parts.time)
    given = architecture_inputs(name, [900.0, 100.0, 900.0])
    with torch.no_grad():
        exact = program.traced.graph_module(*given)[0]
        fake = program.graph_module(*given)[0]
    output = lowered(*given)[0]
    assert output.dtype == torch.float32 and output.shape == exact.shape
    assert error(output, exact) < 1.5 * error(fake, exact) + 1e-2


@pytest.mark.parametrize("name", ["sdxl", "pixart-alpha", "flux"])
def test_sinusoids_of_conditions_are_exact(name: str) -> None:
    """Sizes and guidance are embedded as a timestep is: 3470 rad are 3472 in bfloat16, another angle altogether."""
    program = quantized_architecture(name)
    given = architecture_inputs(name, [500.0, 500.0])
    position = program.timestep_position
    assert position is not None
    angles: list[list[Tensor]] = []
    for dtype in (torch.float32, HALF):
        parts = rewrite(copy_of(program), dtype)
        assert parts.time is not None
        values = values_of(parts.body, (*given, *parts.time(given[position][:1])))
        sines = [node for node in parts.body.graph.nodes if node.target in (aten.sin.default, aten.cos.default)]
        angles.append([values[node.name].float() for node in sines])
    assert len(angles[0]) == len(angles[1]) > 0
    for exact, half in zip(*angles, strict=True):
        torch.testing.assert_close(half, exact, rtol=1e-2, atol=1e-2)


def test_attention_between_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.ModuleList(nn.Linear(CHANNELS, 2 * CHANNELS) for _ in range(3))
            self.out = nn.Linear(2 * CHANNELS, CHANNELS)

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            tokens = (sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)).flatten(2).transpose(1, 2)
            q, k, v = (layer(tokens).unflatten(2, (2, CHANNELS)).transpose(1, 2) for layer in self.qkv)
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    attention = traced(Attention())
    pair = lower(converted(grouped(attention, lambda site: (W8, STATIC) if site.weight else (None, None))))
    half = copy_of(pair.lowered).graph_module
    assert decompose_attention(half) == 1
    to_bfloat16(half, inputs(500))
    values = values_of(half, inputs(500))
    products = [node for node in half.graph.nodes if node.target == aten.matmul.default]
    assert {values[node.name].dtype for node in products} == {HALF}
    with torch.no_grad():
        assert error(half(*inputs(500))[0], pair.lowered.graph_module(*inputs(500))[0]) < 3e-2
