"""Lowered linears against fake quantization, site by site, and the reasons of those that stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_programs import (
    CHANNELS,
    VIEWS,
    W4,
    W8,
    Layers,
    converted,
    copy_of,
    grouped,
    inputs,
    mix_bits,
    scale_channels,
    traced,
)
from torch import Tensor, fx, nn

from dmq_fx.errors import BackendError
from dmq_fx.lowering import torchao_sites
from dmq_fx.lowering.kernels import require_kernels
from dmq_fx.lowering.parity import site_errors
from dmq_fx.lowering.torchao_sites import BY_TIMESTEP, GROUPED, STATIC, WEIGHT_ONLY, lower_sites, torchao_kernels
from dmq_fx.lowering.torchao_tensors import multiplies_exactly, without_range
from dmq_fx.program import Program
from dmq_fx.recipe.language import ActivationSpec, WeightSpec
from dmq_fx.tracing import TracedModel

ROUNDING = 1e-6
"""Largest error of a site in float32: torchao adds and scales in another order."""

needs_vnni = pytest.mark.skipif(not multiplies_exactly(), reason="int8 products overflow on this CPU")
GROUPS = WeightSpec(bits=4, symmetric=False, granularity="per_group", group_size=8)
A8, STEPS = ActivationSpec(bits=8), ActivationSpec(bits=8, per_timestep=True)
WIDTH = 4 * CHANNELS


class Wide(Layers):
    """`Layers` of four times the channels, in the type of the sample."""

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        one = (1.0 + timestep // 1000).to(sample.dtype).reshape(-1, 1, 1, 1)  # so that the values follow the batch
        values = (sample.repeat(1, 4, 1, 1) * (one * 2.0**i) for i in range(len(self.layers)))
        return tuple(layer(VIEWS[view](x)) for view, layer, x in zip(self.views, self.layers, values, strict=True))


def linears() -> Iterator[tuple[str, nn.Module]]:
    """Linears with and without a bias on inputs of 2, 3 and 4 dimensions (two of them not contiguous)."""
    for view in ("row", "tokens", "pixels"):
        for bias in (True, False):
            yield view, nn.Linear(WIDTH, 16, bias=bias)


@pytest.fixture(scope="module")
def bench() -> TracedModel:
    return traced(Wide([*linears(), ("image", nn.Conv2d(WIDTH, 4, 3))]))


def lower(program: Program, *, pad_rows: bool = False) -> Program:
    """A copy of a quantized program whose sites have reached their tensors."""
    lowered = copy_of(program)
    kernels = torchao_kernels(lowered)
    require_kernels(kernels, lower_sites(lowered, kernels, pad_rows=pad_rows))
    return lowered


def worst(fake: Program, lowered: Program, kernel: str, dtype: torch.dtype = torch.float32) -> float:
    """The largest error of a site over batches of 1 and 3, after checking that the six linears have this kernel."""
    found = torchao_kernels(lowered)
    assert [kernel.name for kernel in found.values()] == [kernel] * 6 + [None] * (len(found) - 6)
    errors: list[float] = []
    for timestep, batch in ((900, 1), (100, 3)):
        sample, timesteps = inputs(timestep, batch)
        measured = site_errors(fake, lowered, (sample.to(dtype), timesteps))
        assert len(measured) == 6
        errors += measured.values()
    return max(errors)


@pytest.mark.parametrize(
    ("weight", "kernel"),
    [
        (W8, WEIGHT_ONLY),
        (WeightSpec(bits=5, granularity="per_tensor"), WEIGHT_ONLY),
        (W4, GROUPED),
        (WeightSpec(bits=8, symmetric=False), GROUPED),
        (WeightSpec(bits=2, symmetric=False, granularity="per_tensor"), GROUPED),
    ],
)
def test_weights_alone(bench: TracedModel, weight: WeightSpec, kernel: str) -> None:
    fake = converted(grouped(bench, (weight, None)))
    assert worst(fake, lower(fake), kernel) < ROUNDING


@pytest.mark.parametrize("symmetric", [True, False])
def test_channels_with_bits_of_their_own(bench: TracedModel, symmetric: bool) -> None:
    """Alone, and with activations where the widest fit int8 without their zero points."""
    spec = WeightSpec(bits=3, symmetric=symmetric)
    alone = grouped(bench, (spec, None))
    mix_bits(alone, 2, 8)
    fake = converted(alone)
    assert worst(fake, lower(fake), WEIGHT_ONLY if symmetric else GROUPED) < ROUNDING
    if multiplies_exactly():
        product = grouped(bench, (spec, A8))
        mix_bits(product, 2, 7)
        fake = converted(product)
        assert worst(fake, lower(fake), STATIC) < ROUNDING


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_in_groups(bits: int, symmetric: bool) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(CHANNELS, 24), nn.Linear(24, 8, bias=False)

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return self.second(self.first(VIEWS["tokens"](sample)).relu() * timestep[:, None, None])

    spec = WeightSpec(bits=bits, symmetric=symmetric, granularity="per_group", group_size=8)
    fake = converted(grouped(traced(Two()), lambda site: (spec if site.name == "second" else None, None)))
    lowered = lower(fake)
    assert torchao_kernels(lowered)["second"].name == GROUPED
    (error,) = site_errors(fake, lowered, inputs(900, 3)).values()
    assert error < ROUNDING


@needs_vnni
@pytest.mark.parametrize("gamma", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("per_timestep", [True, False])
@pytest.mark.parametrize("weight", [W8, W4, WeightSpec(bits=7, symmetric=False, granularity="per_tensor")])
def test_integers_times_integers(
    bench: TracedModel, weight: WeightSpec, per_timestep: bool, bits: int, symmetric: bool, gamma: bool
) -> None:
    spec = ActivationSpec(bits=bits, symmetric=symmetric, per_timestep=per_timestep)
    program = grouped(bench, (weight, spec))
    scale_channels(program, gamma=gamma)
    fake = converted(program)
    assert worst(fake, lower(fake), BY_TIMESTEP if per_timestep else STATIC) < ROUNDING


@needs_vnni
@pytest.mark.parametrize("gamma", [True, False])
@pytest.mark.parametrize("spec", [A8, STEPS])
def test_shifts_that_are_in_the_weights(bench: TracedModel, spec: ActivationSpec, gamma: bool) -> None:
    program = grouped(bench, (W4, spec))
    scale_channels(program, gamma=gamma, shifts=1)
    fake = converted(program)
    assert worst(fake, lower(fake), BY_TIMESTEP if spec.per_timestep else STATIC) < ROUNDING


@needs_vnni
def test_a_batch_may_mix_timesteps(bench: TracedModel) -> None:
    fake = converted(grouped(bench, (W8, STEPS)))
    lowered = lower(fake)
    sample, _ = inputs(900, 3)
    assert max(site_errors(fake, lowered, (sample, torch.tensor([900, 100, 500]))).values()) < ROUNDING


@needs_vnni
@pytest.mark.parametrize(("spec", "gamma"), [(A8, False), (A8, True), (STEPS, False), (STEPS, True)])
def test_rows_are_padded_for_cuda(bench: TracedModel, spec: ActivationSpec, gamma: bool) -> None:
    """Where they are a batch: two of the six linears read [batch, channels]."""
    program = grouped(bench, (W8, spec))
    scale_channels(program, gamma=gamma)
    fake = converted(program)
    lowered = lower(fake, pad_rows=True)
    assert worst(fake, lowered, BY_TIMESTEP if spec.per_timestep else STATIC) < ROUNDING
    rows: list[int] = []

    class Watch(fx.Interpreter):
        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if target is nn.functional.linear:
                rows.append(args[0][..., 0].numel())
            return super().call_function(target, args, kwargs)

    Watch(lowered.graph_module).run(*inputs(500, 1))
    assert sorted(rows) == [17, 17, 25, 25, 25, 25]


def test_sizes_that_cuda_does_not_take() -> None:
    program = grouped(traced(Wide([("row", nn.Linear(WIDTH, 12)), ("row", nn.Linear(WIDTH, 8))])), (W8, A8))
    kernels = torchao_kernels(program)
    assert "its weights are [12, 24]" in kernels["layers.0"].reason
    assert kernels["layers.1"].name == STATIC


@pytest.mark.parametrize(
    ("weight", "activation", "shifts", "reason"),
    [
        (None, None, 0, "full precision"),
        (None, A8, 0, "its weights are in full precision"),
        (GROUPS, A8, 0, "its weights have a scale for every group of inputs"),
        (WeightSpec(bits=8, symmetric=False), A8, 0, "8-bit weights less their zero point do not fit int8"),
        (W8, ActivationSpec(bits=6), 0, "rounds activations to 8 bits or to 7, not to 6"),
        (W8, A8, 1, "power-of-two shifts stay in its activation"),
        (W4, STEPS, 3, "power-of-two shifts stay in its activation"),
    ],
)
def test_why_a_linear_stays(
    bench: TracedModel, weight: WeightSpec | None, activation: ActivationSpec | None, shifts: int, reason: str
) -> None:
    program = grouped(bench, lambda site: (weight, activation) if site.op == "linear" else (None, None))
    for activation in program.activations:
        if shifts:
            program.shifts[activation.index] = torch.full((shifts, WIDTH), 3)
    for site, kernel in torchao_kernels(program).items():
        assert kernel.name is None
        assert reason in kernel.reason or program.plan.by_name[site].site.op != "linear"


@pytest.mark.parametrize("activation", [None, A8, STEPS])
def test_what_is_no_linear_stays_fake_quantization(bench: TracedModel, activation: ActivationSpec | None) -> None:
    program = grouped(bench, lambda site: (W8, activation) if site.op == "conv2d" else (None, None))
    kernels = torchao_kernels(program)
    assert [k.reason for k in kernels.values() if "conv" in k.reason] == ["torchao has no int8 kernel for conv2d"]
    fake = converted(program)
    lowered = lower(fake)
    with torch.no_grad():
        for found, expected in zip(lowered.graph_module(*inputs(500)), fake.graph_module(*inputs(500)), strict=True):
            assert torch.equal(found, expected)


def test_products_of_activations_say_so() -> None:
    class Attention(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(
                sample, sample * 2, sample * timestep[:, None, None, None]
            )

    program = grouped(traced(Attention()), (None, A8))
    (kernel,) = torchao_kernels(program).values()
    assert kernel.name is None and "a product of two activations" in kernel.reason


@needs_vnni
@pytest.mark.parametrize(("dtype", "ulp"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
@pytest.mark.parametrize(
    ("weight", "activation", "kernels"),
    [
        (W8, None, (WEIGHT_ONLY, GROUPED)),
        (W4, None, (GROUPED,) * 2),
        (W4, A8, (STATIC,) * 2),
        (W8, STEPS, (BY_TIMESTEP,) * 2),
    ],
)
def test_models_in_half_precision(
    dtype: torch.dtype, ulp: float, weight: WeightSpec, activation: ActivationSpec | None, kernels: tuple[str, str]
) -> None:
    """To the rounding of the type; weight-only products of integers would overflow float16, and are not taken."""
    fake = converted(grouped(traced(Wide(list(linears())), dtype), (weight, activation)))
    lowered = lower(fake)
    lowered.graph_module.to("cpu")  # as a loaded model is moved: torchao takes the chance to round scales
    assert worst(fake, lowered, kernels[dtype == torch.float16], dtype) < 4 * ulp
    with torch.no_grad():
        assert lowered.graph_module(torch.ones(1, CHANNELS, 5, 5, dtype=dtype), torch.tensor([900]))[0].dtype == dtype


@needs_vnni
@pytest.mark.parametrize(("spec", "gamma"), [(None, False), (A8, False), (A8, True), (STEPS, False), (STEPS, True)])
def test_a_compiler_takes_the_graph_whole(bench: TracedModel, spec: ActivationSpec | None, gamma: bool) -> None:
    program = grouped(bench, (W8, spec))
    scale_channels(program, gamma=gamma)
    lowered = lower(converted(program)).graph_module
    compiled = torch.compile(lowered, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for found, expected in zip(compiled(*inputs(500)), lowered(*inputs(500)), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_site_that_is_missed_is_named(bench: TracedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    program = converted(grouped(bench, (W8, None)))
    monkeypatch.setattr(torchao_sites, "weight_only", lambda weight, dtype: weight.dequantized())
    with pytest.raises(BackendError, match=r"site 'layers\.0' did not reach its kernel") as caught:
        lower(program)
    assert "planned torchao Int8Tensor weight-only, found a weight of type Tensor" in str(caught.value)


def test_a_range_that_torchao_would_find_itself_is_no_kernel(
    bench: TracedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a scale Int8Tensor finds one in every call: other integers than the recipe's."""
    program = converted(grouped(bench, (W8, A8)))
    monkeypatch.setattr(
        torchao_sites, "with_static_range", lambda weight, grid, found, dims: without_range(weight, grid)
    )
    with pytest.raises(BackendError, match="found ranges that torchao finds itself"):
        lower(program)
