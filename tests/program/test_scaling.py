"""Split, equivalent scaling and shifts: the same function without rounding, and the same integers either way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from dmq_fx.calibration.streaming import quantized_output
from dmq_fx.compiler import resolve_recipe
from dmq_fx.models import load_model
from dmq_fx.numerics import IntegerGrid, quantize_weight
from dmq_fx.planning import Plan, make_plan
from dmq_fx.program import (
    Program,
    convert_activations,
    convert_weights,
    fold_norms,
    group_activations,
    insert_observers,
)
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import along_inputs
from dmq_fx.program.scaling import channel_axis, largest_shift, placed_weight
from dmq_fx.roles import find_sites
from dmq_fx.tracing import TracedModel, trace

TIMESTEPS = torch.tensor([900.0, 500.0, 100.0])
STATIC = "schemes.body.activation.per_timestep=false"


@pytest.fixture(scope="module")
def traced(pipeline_folder: Path) -> TracedModel:
    return trace(load_model(str(pipeline_folder / "unet")).denoiser)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 3, 16, 16, generator=generator), torch.tensor([900, 500, 100])


def split(traced: TracedModel, *overrides: str, role: str = "skip_connection") -> Program:
    from dmq_fx.passes.split import Split, SplitOptions
    from dmq_fx.program import PassContext

    recipe = resolve_recipe("ptq/w4a8", overrides).recipe
    plan = make_plan(recipe, find_sites(traced), traced)
    wanted = tuple(p if not p.quantized else type(p)(**{**vars(p), "passes": ("split",)}) for p in plan.sites)
    program = Program(traced, Plan(wanted, plan.parameters), TIMESTEPS)
    Split.run(program, SplitOptions(sites=role), PassContext(None, 0, "cpu", lambda *_: None))
    return program


def scaled(traced: TracedModel, *overrides: str, shifts: bool = False, slots: int = 1) -> Program:
    """A program with random gamma (and shifts) on every activation that can have one, calibrated and converted."""
    program = split(traced, *overrides)
    group_activations(program)
    generator = torch.Generator().manual_seed(0)
    for activation in program.activations:
        axis = channel_axis(program, activation)
        if axis is None:
            continue
        channels = int(program.nodes[activation.producer].meta["val"].shape[axis])
        program.input_scales[activation.index] = torch.rand(channels, generator=generator) * 3 + 0.2
        if shifts:
            rows = slots if activation.spec.per_timestep else 1
            program.shifts[activation.index] = torch.randint(0, 4, (rows, channels), generator=generator)
    insert_observers(program)
    with torch.no_grad():
        program.graph_module(*inputs())
    for activation in program.activations:
        observer = program.graph_module.get_submodule(f"dmq.observers.{activation.index}")
        program.qparams[activation.index] = observer.calculate_qparams()
    for planned in program.plan.sites:
        if planned.weight and planned.site.weight:
            program.weights[planned.site.weight] = quantize_weight(program.scaled_weight(planned), planned.weight)
    fold_norms(program)
    convert_activations(program)
    convert_weights(program, program.weights)
    return program


class WithoutRounding(fx.Interpreter):
    """The converted graph with its scales and without its rounding, in float64."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.program = program
        self.by_weight = {p.site.weight: p for p in program.plan.sites if p.weight}

    def run_node(self, n: fx.Node) -> Any:
        facts = n.meta.get("dmq", {})
        name = str(n.target)
        args = self.fetch_args_kwargs_from_env(n)[0] if n.op == "call_function" else ()
        if facts.get("kind") == "weight" and "dequantize" in name:
            return self.weight(facts["weight"])
        if "quantize" not in name or facts.get("kind") != "activation":
            result = super().run_node(n)
            return result.double() if isinstance(result, Tensor) and result.is_floating_point() else result
        x, scale, zero_point = args[0].double(), args[1], args[2]
        if "affine" in name:
            _, block, scale, zero_point = args[:4]
            shape = [full if b == 1 else 1 for b, full in zip(block, x.shape, strict=True)]
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        elif isinstance(scale, Tensor):
            axis = args[3]
            shape = [-1 if dim == axis else 1 for dim in range(x.dim())]
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        return (x - zero_point) * scale if "dequantize" in name else x / scale + zero_point

    def weight(self, name: str) -> Tensor:
        planned = self.by_weight[name]
        value = self.program.scaled_weight(planned).double()
        activation = self.program.activation_of(planned, 0)
        largest = largest_shift(self.program, activation) if activation else None
        if activation is None or largest is None:
            return value
        return value * along_inputs(torch.pow(2.0, largest - self.program.shifts[activation.index][0]), value)


@pytest.mark.parametrize("overrides", [(), (STATIC,)], ids=["per_timestep", "static"])
@pytest.mark.parametrize("shifts", [None, 1, 3], ids=["gamma", "shared shifts", "shifts by timestep"])
def test_without_rounding_it_is_the_full_precision_model(
    traced: TracedModel, overrides: tuple[str, ...], shifts: int | None
) -> None:
    program = scaled(traced, *overrides, shifts=shifts is not None, slots=shifts or 1)
    assert program.input_scales and program.folded and set(program.folded) < set(program.input_scales)
    x, t = inputs()
    with torch.no_grad():
        expected = traced.graph_module(x, t)[0]
        got = WithoutRounding(program).run(x, t)[0]
        assert float((got - expected).abs().max() / expected.std()) < 1e-5
        rounded = program.graph_module(x, t)[0]
        assert float((rounded - expected).abs().max() / expected.std()) > 1e-4


def test_split_computes_the_same(traced: TracedModel) -> None:
    for role in ("skip_connection", "skip_concat"):
        program = split(traced, role=role)
        assert program.splits
        x, t = inputs()
        with torch.no_grad():
            expected, got = traced.graph_module(x, t)[0], program.traced.graph_module(x, t)[0]
        assert float((got - expected).abs().max() / expected.std()) < 1e-5
        for name in program.splits:
            halves = [program.plan.by_name[f"{name}.{half}"] for half in ("decoder", "encoder")]
            whole = next(p for p in find_sites(traced) if p.name == name)
            assert sum(half.site.shape[1] for half in halves) == whole.shape[1]
            assert halves[0].site.shape[1] == whole.split
            assert [half.site.bias for half in halves] == [whole.bias, None]
            assert sum(half.site.macs for half in halves) == whole.macs


def test_split_reads_what_was_concatenated_or_slices(traced: TracedModel) -> None:
    program = split(traced, role="skip_concat")
    nodes = {node.name: node for node in program.traced.graph.nodes}
    direct = nodes[program.plan.by_name["up_blocks.0.resnets.0.conv_shortcut.encoder"].site.node]
    assert "slice" not in str(direct.args[0].target)
    behind_a_norm = nodes[program.plan.by_name["up_blocks.0.resnets.0.conv1.encoder"].site.node]
    assert "slice" in str(behind_a_norm.args[0].target)


@pytest.mark.parametrize("overrides", [(), (STATIC,)], ids=["per_timestep", "static"])
@pytest.mark.parametrize("slots", [1, 3])
def test_graph_agrees_with_the_reference_of_every_site(
    traced: TracedModel, overrides: tuple[str, ...], slots: int
) -> None:
    """What a pass measures of a site (`quantized_output`) is what the converted graph computes of it."""
    program = scaled(traced, *overrides, shifts=True, slots=slots)
    x, t = inputs()
    seen: dict[str, Tensor] = {}

    class Values(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                seen[n.name] = result
            return result

    with torch.no_grad():
        Values(program.graph_module).run(x, t)
    checked = 0
    for planned in program.plan.sites:
        activation = program.activation_of(planned, 0) if planned.weight else None
        if activation is None:
            continue
        node = program.nodes[planned.site.node]
        arguments = [
            get_tensor(program.traced.graph_module, str(a.target)) if isinstance(a, fx.Node) else a
            for a in node.args[1:]
        ]
        value = seen[activation.producer]
        if activation.index in program.folded:  # the norm gives x / gamma, the reference takes x
            axis = channel_axis(program, activation) or 0
            value = value * program.input_scales[activation.index].reshape(-1, *([1] * (value.dim() - 1 - axis)))
        reference = quantized_output(program, planned, (value, *arguments), torch.arange(3))
        error = (reference - seen[planned.site.node]).abs()
        # A value on the edge between two integers may fall either way after the norm's division, which one CPU rounds
        # otherwise than another: it moves all channels of the positions that read it, and no others.
        channels = error.dim() - 1 if planned.site.op == "linear" else 1
        moved = error.amax(channels) > 1e-5 * reference.std()
        reach = math.prod(planned.site.shape[2:]) if activation.index in program.folded else 0
        assert int(moved.sum()) <= 2 * reach, planned.name
        checked += 1
    assert checked > 20


def test_shifted_weights_are_int8_and_exact(traced: TracedModel) -> None:
    program = scaled(traced, shifts=True)
    folded = 0
    for planned in program.plan.sites:
        activation = program.activation_of(planned, 0) if planned.weight else None
        if activation is None or activation.index not in program.shifts or largest_shift(program, activation) is None:
            continue
        folded += 1
        weight = program.weights[planned.site.weight or ""]
        placed = placed_weight(program, planned, weight)
        shifts = program.shifts[activation.index][0]
        largest = int(shifts.max())
        assert placed.integers.dtype == torch.int8 and placed.grid == IntegerGrid(8, True)
        assert int(placed.zero_point.abs().max()) == 0
        graph = get_tensor(program.graph_module, planned.site.weight or "")
        assert torch.equal(graph, placed.integers)
        # y = sum_c (q_c - z) 2^-k_c (w - z_w)  =  2^-K sum_c (q_c - z) ((w - z_w) << (K - k_c)), in integers
        generator = torch.Generator().manual_seed(1)
        q = torch.randint(-255, 256, (7, planned.site.shape[1]), generator=generator)
        centred = weight.integers.long() - weight.zero_point.reshape(-1, *([1] * (weight.integers.dim() - 1)))
        exact = torch.einsum("nc,oc...->no...", (q * 2 ** (largest - shifts)), centred)
        assert torch.equal(torch.einsum("nc,oc...->no...", q, placed.integers.long()), exact)
    assert folded > 5


def test_shifts_stay_in_the_activation_where_int8_is_too_small(traced: TracedModel) -> None:
    program = scaled(traced, "schemes.body.weight.bits=6", shifts=True)
    shifted = [a for a in program.activations if a.index in program.shifts and int(program.shifts[a.index].max()) == 3]
    assert shifted
    body = [a for a in shifted if program.plan.by_name[a.sites[0]].weight_bits == 6]
    assert all(largest_shift(program, a) is None for a in body)
