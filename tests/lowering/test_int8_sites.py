"""A lowered site computes what fake quantization does, from the same integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from integers import same_integers, values_of
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    SIZE,
    STATIC,
    TIMESTEPS,
    W4,
    W8,
    Pair,
    Specs,
    converted,
    grouped,
    inputs,
    kernel_nodes,
    lower,
    mix_bits,
    needs_vnni,
    scale_channels,
    traced,
    traced_layers,
)
from torch import Tensor, nn

from dmq_fx.lowering.int8_weights import centred
from dmq_fx.lowering.kernels import int8_kernels
from dmq_fx.lowering.onednn import onednn
from dmq_fx.lowering.parity import TOLERANCE, site_errors
from dmq_fx.program.split import split_sites
from dmq_fx.recipe.language import ActivationSpec, WeightSpec
from dmq_fx.roles import find_sites
from dmq_fx.tracing import TracedModel

pytestmark = needs_vnni
aten = torch.ops.aten
QUICK: dict[str, Any] = {"deadline": None, "derandomize": True, "database": None, "phases": (Phase.generate,)}


def assert_same(pair: Pair, given: tuple[Tensor, ...]) -> None:
    """Every kernel of a lowered program has fake quantization's integers and its output."""
    kernels = {name for name, kernel in int8_kernels(pair.fake).items() if kernel.name}
    integers = same_integers(pair, given)
    errors = site_errors(pair.fake, pair.lowered, given)
    assert set(integers) == set(errors) == kernels
    assert {site for site, same in integers.items() if not same} == set()
    assert {site: error for site, error in errors.items() if not error < TOLERANCE} == {}


@pytest.fixture(scope="module")
def bench() -> TracedModel:
    """Every kind of site and of input once."""
    c = CHANNELS
    return traced_layers(
        ("image", nn.Conv2d(c, 8, 3, padding=1)),
        ("image", nn.Conv2d(c, 8, 1)),
        ("image", nn.Conv2d(c, 8, 1, stride=2, bias=False)),
        ("image", nn.Conv2d(c, 4, 3, stride=2, padding=(0, 2), bias=False)),
        ("image", nn.Conv2d(c, c, 3, groups=c, padding=1)),
        ("image", nn.Conv2d(c, 4, 3, groups=2, padding=2, dilation=2)),
        ("line", nn.Conv1d(c, 4, 3, padding=1)),
        ("line", nn.Conv1d(c, 4, 1, bias=False)),
        ("volume", nn.Conv3d(c, 4, (3, 1, 3), padding=1)),
        ("volume", nn.Conv3d(c, 4, 1)),
        ("row", nn.Linear(c, 7)),
        ("tokens", nn.Linear(c, 7, bias=False)),
        ("pixels", nn.Linear(c, 5)),
    )


@st.composite
def precisions(draw: DrawFn) -> Specs:
    symmetric = draw(st.booleans())
    weight = WeightSpec(
        bits=draw(st.integers(2, 8 if symmetric else 7)),
        symmetric=symmetric,
        granularity=draw(st.sampled_from(["per_tensor", "per_channel"])),
    )
    activation = ActivationSpec(
        bits=draw(st.integers(4, 8)), symmetric=draw(st.booleans()), per_timestep=draw(st.booleans())
    )
    return weight, activation


@pytest.mark.parametrize(
    ("weight", "shared"), [(WeightSpec(bits=8, symmetric=True), True), (WeightSpec(bits=4, symmetric=False), False)]
)
def test_integers_that_are_int8_already_are_not_copied(bench: TracedModel, weight: WeightSpec, shared: bool) -> None:
    program = converted(grouped(bench, (weight, STATIC)))
    for held in program.weights.values():
        assert (centred(held) is held.integers) == shared
        back = centred(held).reshape(len(held.scale), -1) + held.zero_point.reshape(-1, 1)
        assert torch.equal(back.reshape(held.integers.shape), held.integers.long())


@settings(max_examples=25, **QUICK)
@given(specs=precisions(), seed=st.integers(0, 99), timestep=st.sampled_from([900, 480, 0]), batch=st.integers(1, 3))
def test_any_precision(bench: TracedModel, specs: Specs, seed: int, timestep: int, batch: int) -> None:
    pair = lower(converted(grouped(bench, specs), seed=seed))
    assert len(kernel_nodes(pair.lowered.graph_module.graph)) == 13
    assert_same(pair, inputs(timestep, batch, seed=seed))


@pytest.mark.parametrize(("symmetric", "fewest", "most"), [(False, 1, 3), (False, 1, 7), (True, 2, 8)])
@pytest.mark.parametrize("activation", [STATIC, BY_TIMESTEP], ids=["static", "by timestep"])
def test_channels_with_bits_of_their_own(
    bench: TracedModel, symmetric: bool, fewest: int, most: int, activation: ActivationSpec
) -> None:
    program = grouped(bench, (WeightSpec(bits=2, symmetric=symmetric), activation))
    mix_bits(program, fewest, most)
    if most == 3:
        scale_channels(program, gamma=True, shifts=1)
    pair = lower(converted(program))
    assert len(kernel_nodes(pair.lowered.graph_module.graph)) == 13
    assert_same(pair, inputs(480))


@pytest.mark.parametrize("bits", [2, 4])
def test_symmetric_activations_of_few_bits(bench: TracedModel, bits: int) -> None:
    """What makes signed integers unsigned is taken off every sum again, in float32: it must not dwarf them."""
    spec = ActivationSpec(bits=bits, symmetric=True)
    program = grouped(bench, (WeightSpec(bits=4), spec))
    pair = lower(converted(program))
    worst = {seed: max(site_errors(pair.fake, pair.lowered, inputs(500, seed=seed)).values()) for seed in range(20)}
    assert {seed: error for seed, error in worst.items() if not error < TOLERANCE} == {}


@settings(max_examples=20, **QUICK)
@given(specs=precisions(), gamma=st.booleans(), shifts=st.sampled_from([0, 1, len(TIMESTEPS)]), seed=st.integers(0, 99))
def test_scaled_by_channel(bench: TracedModel, specs: Specs, gamma: bool, shifts: int, seed: int) -> None:
    program = grouped(bench, specs)
    scale_channels(program, gamma=gamma, shifts=shifts, seed=seed)
    pair = lower(converted(program, seed=seed))
    assert len(kernel_nodes(pair.lowered.graph_module.graph)) == 13
    for timestep in (900, 100):
        assert_same(pair, inputs(timestep, seed=seed))


@settings(max_examples=10, **QUICK)
@given(specs=precisions(), seed=st.integers(0, 99))
def test_ties_are_rounded_the_same_way(bench: TracedModel, specs: Specs, seed: int) -> None:
    program = grouped(bench, specs)
    scale_channels(program, shifts=1, seed=seed)
    pair = lower(converted(program, seed=seed, ties=True))
    step = 2.0 ** -specs[1].bits if specs[1] else 0.0
    given = inputs(500, seed=seed, step=step)
    scale = pair.fake.qparams[0].scale
    shares = [float(((given[0] / s / 2) % 1 == 0.5).float().mean()) for s in scale]
    assert min(shares) > 0.05  # first layer: the sample over two
    assert_same(pair, given)


@st.composite
def geometries(draw: DrawFn) -> tuple[str, nn.Module]:
    """A convolution that fits an image of SIZE x SIZE, or a line of its pixels."""
    view, dim, length = draw(st.sampled_from([("image", 2, SIZE), ("image", 2, SIZE), ("line", 1, SIZE * SIZE)]))

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dim))

    kernel, stride, padding = per_axis(1, 3), per_axis(1, 2), per_axis(0, 2)
    dilation = tuple(
        draw(st.integers(1, 2)) if length + 2 * p - 2 * (k - 1) > 0 else 1 for k, p in zip(kernel, padding, strict=True)
    )
    groups = draw(st.sampled_from([1, 1, 2, 3, CHANNELS]))
    out = groups * draw(st.integers(1, 3))
    make = nn.Conv2d if dim == 2 else nn.Conv1d
    bias = draw(st.booleans())
    return view, make(CHANNELS, out, kernel, stride, padding, dilation, groups, bias)  # type: ignore[arg-type]


@settings(max_examples=10, **QUICK)
@given(
    layers=st.lists(geometries(), min_size=4, max_size=4),
    symmetric=st.booleans(),
    per_timestep=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_geometry(layers: list[tuple[str, nn.Module]], symmetric: bool, per_timestep: bool, seed: int) -> None:
    spec = ActivationSpec(bits=8, symmetric=symmetric, per_timestep=per_timestep)
    pair = lower(converted(grouped(traced_layers(*layers), (W8, spec)), seed=seed))
    assert len(kernel_nodes(pair.lowered.graph_module.graph)) == 4
    assert_same(pair, inputs(500, seed=seed))


class Block(nn.Module):
    """Norms in front of sites, one input for three of them, a concat of an encoder and a decoder, a module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, CHANNELS)
        self.encoder = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.again = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.joined = nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1)
        self.layer_norm = nn.LayerNorm(CHANNELS)
        self.qkv = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(3))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        sample = sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)
        encoder = self.encoder(self.norm(sample))
        decoder = self.again(self.again(encoder.sigmoid()).sigmoid())
        h = self.joined(torch.cat([decoder, encoder], 1))
        tokens = self.layer_norm(h.flatten(2).transpose(1, 2))
        q, k, v = (layer(tokens) for layer in self.qkv)
        return h + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, (SIZE, SIZE))


@pytest.fixture(scope="module")
def block() -> TracedModel:
    return traced(Block())


@pytest.mark.parametrize("spec", [STATIC, BY_TIMESTEP], ids=["static", "per timestep"])
@pytest.mark.parametrize("shifts", [0, 1, 3], ids=["gamma", "shared shifts", "shifts by timestep"])
def test_block_with_norms_and_a_split_concat(block: TracedModel, spec: ActivationSpec, shifts: int) -> None:
    model, sites = split_sites(block, find_sites(block), ["joined"])
    program = grouped(model, lambda site: (W4, spec) if site.weight else (None, None), sites)
    scale_channels(program, gamma=True)
    scale_channels(program, shifts=shifts)
    for activation in program.activations:
        if activation.sites[0] in ("again", "again@1"):  # two inputs of one weight: neither can scale it
            program.input_scales.pop(activation.index)
            program.shifts.pop(activation.index, None)
    pair = lower(converted(program))
    assert pair.fake.folded
    kernels = kernel_nodes(pair.lowered.graph_module.graph)
    assert {"joined.decoder", "joined.encoder", "again", "again@1"} < set(kernels)
    for timestep in (900, 120):
        assert_same(pair, inputs(timestep))


def test_sites_that_read_one_value_share_its_integers(block: TracedModel) -> None:
    program = grouped(block, lambda site: (W4, BY_TIMESTEP) if site.weight else (None, None))
    pair = lower(converted(program))
    values = values_of(pair.lowered.graph_module, inputs(500))
    calls = kernel_nodes(pair.lowered.graph_module.graph)
    q, k, v = (values[calls[f"qkv.{i}"].args[0].name] for i in range(3))
    assert torch.equal(q, k) and torch.equal(q, v)
    made = [n for n in pair.lowered.graph_module.graph.nodes if n.target == aten.to.dtype and torch.uint8 in n.args]
    assert len(made) == len(program.activations)


def test_kernel_reads_the_range_of_its_timestep(bench: TracedModel) -> None:
    program = converted(grouped(bench, (W8, BY_TIMESTEP)))
    pair = lower(program)
    sample = inputs(900)[0]
    outputs = [pair.lowered.graph_module(sample, torch.tensor([t, t]))[0] for t in (900, 701, 699, 100)]
    assert torch.equal(outputs[0], outputs[1])  # 701 is nearest to 900, 699 is not
    assert not torch.equal(outputs[1], outputs[2]) and not torch.equal(outputs[2], outputs[3])


def test_nothing_of_fake_quantization_is_left(bench: TracedModel) -> None:
    pair = lower(converted(grouped(bench, (W4, BY_TIMESTEP))))
    module = pair.lowered.graph_module
    module.graph.lint()
    assert not [node for node in module.graph.nodes if "quantize" in str(node.target)]
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    assert set(module.state_dict()) == read
    weights = [tensor for name, tensor in module.state_dict().items() if name.endswith("weight_int8")]
    assert len(weights) == 13 and all(tensor.dtype == torch.int8 for tensor in weights)


def test_site_that_cannot_be_lowered_stays_as_it_is(bench: TracedModel) -> None:
    left = ("layers.0", "layers.10")
    pair = lower(converted(grouped(bench, lambda s: (WeightSpec(bits=8, symmetric=s.name not in left), BY_TIMESTEP))))
    assert set(kernel_nodes(pair.lowered.graph_module.graph)) == {f"layers.{i}" for i in range(13)} - set(left)
    with torch.no_grad():
        found, expected = (program.graph_module(*inputs(300)) for program in (pair.lowered, pair.fake))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_vnni
def test_weights_are_packed_for_the_images_that_they_meet() -> None:
    """Packed for no shape, those of some sizes of image would be laid out anew in every call."""
    layers = (
        ("image", nn.Conv2d(CHANNELS, 4, 3, padding=1)),
        ("image", nn.Conv2d(CHANNELS, 4, 3, stride=2)),
        ("image", nn.Conv2d(CHANNELS, 6, 3, padding=1, groups=2)),
        ("line", nn.Conv1d(CHANNELS, 4, 3)),
    )
    pair = lower(converted(grouped(traced_layers(*layers), (W8, STATIC))))
    graph = pair.lowered.graph_module.graph
    packed = [node.args[-1] for node in graph.nodes if node.target is onednn.qconv_prepack.default]
    padded = [2, CHANNELS, SIZE + 2, SIZE + 2]
    assert packed == [padded, [2, CHANNELS, SIZE, SIZE], padded, None]
