"""Which sites get an int8 kernel, and the reasons of those that get none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    STATIC,
    W4,
    W8,
    Specs,
    converted,
    grouped,
    inputs,
    lower,
    mix_bits,
    needs_vnni,
    scale_channels,
    traced,
    traced_layers,
)
from torch import Tensor, nn

from dmq_fx.errors import BackendError
from dmq_fx.lowering.int8_sites import lower_sites
from dmq_fx.lowering.kernels import Kernel, int8_kernels, require_kernels
from dmq_fx.planning import Plan
from dmq_fx.recipe.language import WeightSpec
from dmq_fx.tracing import TracedModel

FITS = "weights shifted left by up to {} bits do not fit int8 (-128..127)"


@pytest.fixture(scope="module")
def layers() -> TracedModel:
    return traced_layers(
        ("image", nn.Conv2d(CHANNELS, 4, 3)),
        ("line", nn.Conv1d(CHANNELS, 4, 3)),
        ("volume", nn.Conv3d(CHANNELS, 4, 1)),
        ("tokens", nn.Linear(CHANNELS, 4)),
        ("image", nn.Conv2d(CHANNELS, 4, 3, padding="same")),
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(3))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        x = (sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)).flatten(2).transpose(1, 2)
        q, k, v = (layer(x) for layer in self.qkv)
        return nn.functional.scaled_dot_product_attention(q, k, v) + q @ k.transpose(1, 2) @ v


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return self.conv(self.conv(sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)).sigmoid())


def test_kernel_of_every_operation(layers: TracedModel) -> None:
    found = int8_kernels(grouped(layers, (W8, STATIC)))
    assert [found[f"layers.{i}"].name for i in range(4)] == [
        "int8 conv2d",
        "int8 conv1d",
        "int8 conv3d",
        "int8 linear",
    ]
    assert str(found["layers.3"]) == "int8 linear"
    assert str(found["layers.4"]) == "none: there is no int8 kernel for aten.conv2d.padding"


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ((None, None), "full precision"),
        ((W8, None), "its activations are in full precision"),
        ((None, STATIC), "its weights are in full precision"),
        (
            (WeightSpec(bits=8, symmetric=False), STATIC),
            "8-bit weights less their zero point do not fit int8 (symmetric ones do, and 7 bits)",
        ),
    ],
    ids=["full precision", "weight only", "activation only", "8-bit asymmetric"],
)
def test_reason_of_a_scheme(layers: TracedModel, specs: Specs, reason: str) -> None:
    found = int8_kernels(grouped(layers, specs))
    assert {found[f"layers.{i}"] for i in range(4)} == {Kernel(None, reason)}


class ComputedBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(CHANNELS, CHANNELS, 3, 3))
        self.bias = nn.Parameter(torch.zeros(CHANNELS))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        scaled = sample * (1 + timestep // 1000).reshape(-1, 1, 1, 1)
        return nn.functional.conv2d(scaled, self.weight, self.bias * 2, padding=1)


def test_a_bias_that_is_computed() -> None:
    """The activation's zero point goes into a convolution's bias, which must be there for that."""
    program = grouped(traced(ComputedBias()), (W8, STATIC))
    (kernel,) = int8_kernels(program).values()
    assert kernel == Kernel(None, "its bias is computed, and would take the activation's zero point up")
    pair = lower(converted(program))
    for one, other in zip(pair.lowered.graph_module(*inputs(500)), pair.fake.graph_module(*inputs(500)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_that_fit(layers: TracedModel, bits: int) -> None:
    for symmetric in (True, False):
        found = int8_kernels(grouped(layers, (WeightSpec(bits=bits, symmetric=symmetric), STATIC)))
        assert (found["layers.0"].name is None) == (bits == 8 and not symmetric)


def test_the_widest_channel_decides(layers: TracedModel) -> None:
    program = grouped(layers, (WeightSpec(bits=3, symmetric=False), STATIC))
    before = int8_kernels(program)
    mix_bits(program, 1, 7)
    assert int8_kernels(program) == before
    program = grouped(layers, (WeightSpec(bits=3, symmetric=False), STATIC))
    mix_bits(program, 1, 8)
    reasons = {kernel.reason for kernel in int8_kernels(program).values() if not kernel.name}
    assert any("8-bit weights less their zero point do not fit int8" in reason for reason in reasons)
    assert not any(kernel.name for kernel in int8_kernels(program).values())


def test_per_group() -> None:
    module = traced_layers(("tokens", nn.Linear(CHANNELS, 16)), ("tokens", nn.Sequential(nn.Linear(CHANNELS, 4))))
    spec = WeightSpec(bits=4, granularity="per_group", group_size=8)
    program = grouped(module, lambda site: (spec if site.shape == (16, CHANNELS) else W4, STATIC))
    found = int8_kernels(program)
    assert found["layers.0"].reason == "its weights have a scale for every group of inputs"
    assert found["layers.1.0"].name == "int8 linear"


def test_products_of_activations() -> None:
    found = int8_kernels(grouped(traced(Attention()), (W8, STATIC)))
    products = {name: kernel for name, kernel in found.items() if "qkv" not in name}
    assert len(products) == 3
    fused = "its softmax is computed in floating point: the pass split_attention quantizes that, too"
    other = "a product of two activations, but not of attention (a mask?): its inputs meet in floating point"
    assert [kernel.reason for kernel in products.values()].count(other) == 2
    assert {kernel.reason for kernel in products.values()} == {fused, other}
    plain = int8_kernels(grouped(traced(Attention()), lambda site: (W8, STATIC) if site.weight else (None, None)))
    assert {plain[name].reason for name in products} == {"full precision"}


@pytest.mark.parametrize("slots", [1, 3])
def test_shifts_that_do_not_fit(layers: TracedModel, slots: int) -> None:
    for bits, symmetric, largest in ((4, False, 3), (4, True, 4), (6, False, 1), (7, True, 1), (8, True, 0)):
        program = grouped(layers, (WeightSpec(bits=bits, symmetric=symmetric), BY_TIMESTEP))
        scale_channels(program, shifts=slots)
        for shift in (largest, largest + 1):
            program.shifts = {i: torch.full_like(k, shift) for i, k in program.shifts.items()}
            reason = "" if shift == largest else FITS.format(shift)
            found = int8_kernels(program)
            assert {found[f"layers.{i}"].reason for i in range(4)} == {reason}, (bits, symmetric, shift)


def test_shifts_of_a_shared_weight_say_that_it_is_shared() -> None:
    """4-bit weights shifted by 3 fit int8; what keeps them out is that two inputs meet the same weights."""
    program = grouped(traced(Twice()), (W4, BY_TIMESTEP))
    scale_channels(program, shifts=1)
    found = int8_kernels(program)
    assert all(kernel.name is None and "do not fit int8" not in kernel.reason for kernel in found.values()), found


def test_shifts_of_timesteps_do_not_mind_a_shared_weight() -> None:
    program = grouped(traced(Twice()), (W4, BY_TIMESTEP))
    scale_channels(program, shifts=3)
    assert {kernel.name for kernel in int8_kernels(program).values()} == {"int8 conv2d"}


EXPECTED = {"a": Kernel("int8 conv2d"), "b": Kernel("int8 linear"), "c": Kernel(None, "full precision")}


def test_kernels_that_are_reached() -> None:
    require_kernels(EXPECTED, {"a": "int8 conv2d", "b": "int8 linear"})


@pytest.mark.parametrize(
    ("reached", "message", "where", "hint"),
    [
        ({"a": "int8 conv2d"}, "site 'b' did not reach its kernel", "b", "planned int8 linear, found floating point"),
        (
            {"a": "int8 linear", "b": "int8 linear"},
            "site 'a' did not reach its kernel",
            "a",
            "planned int8 conv2d, found int8 linear",
        ),
        (
            {"a": "int8 conv2d", "b": "int8 linear", "c": "int8 linear"},
            "site 'c' runs on int8 linear without a plan to",
            "c",
            None,
        ),
    ],
)
def test_kernels_that_are_missed(reached: dict[str, str], message: str, where: str, hint: str | None) -> None:
    with pytest.raises(BackendError, match=message) as error:
        require_kernels(EXPECTED, reached)
    assert error.value.where == where
    assert hint is None or hint in error.value.hint


@needs_vnni
def test_a_site_that_is_lost_on_the_way_is_named(layers: TracedModel) -> None:
    """`lower_sites` reports what the graph calls, not what was wanted."""
    program = converted(grouped(layers, (W8, STATIC)))
    expected = int8_kernels(program)
    program.plan = Plan(program.plan.sites[1:], 0)
    with pytest.raises(BackendError, match=r"site 'layers\.0' did not reach its kernel"):
        require_kernels(expected, lower_sites(program, expected))


@needs_vnni
def test_kernels_before_and_after_the_conversion_are_the_same(layers: TracedModel) -> None:
    program = grouped(layers, lambda site: (W4 if site.op == "conv2d" else replace(W8, symmetric=False), BY_TIMESTEP))
    before = int8_kernels(program)
    pair = lower(converted(program))
    assert before == int8_kernels(pair.fake) == int8_kernels(pair.lowered)
