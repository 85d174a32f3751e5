"""Observers in, integers out: the structure of the graph and the numbers that it computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from dmq_fx.calibration.streaming import SiteInterpreter, quantized_output
from dmq_fx.compiler import resolve_recipe
from dmq_fx.models import load_model
from dmq_fx.numerics import QParams, quantize_weight
from dmq_fx.planning import PlannedSite, make_plan
from dmq_fx.program import Program, convert_activations, convert_weights, group_activations, insert_observers
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.roles import find_sites
from dmq_fx.tracing import TracedModel, trace

TIMESTEPS = torch.tensor([900.0, 500.0, 100.0])


@pytest.fixture(scope="module")
def traced(pipeline_folder: Path) -> TracedModel:
    return trace(load_model(str(pipeline_folder / "unet")).denoiser)


@pytest.fixture(scope="module")
def observed(traced: TracedModel) -> Program:
    return build(traced)


def build(traced: TracedModel, *overrides: str) -> Program:
    recipe = resolve_recipe("ptq/w4a8", overrides).recipe
    program = Program(traced, make_plan(recipe, find_sites(traced), traced), TIMESTEPS)
    group_activations(program)
    insert_observers(program)
    return program


def inputs(timesteps: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(len(timesteps), 3, 16, 16, generator=generator), torch.tensor(timesteps)


def calibrated(program: Program) -> Program:
    with torch.no_grad():
        for t in (900, 500, 100):
            x, timesteps = inputs([t] * 4)
            program.graph_module(x * (1 + t / 500), timesteps)
    for activation in program.activations:
        observer = program.graph_module.get_submodule(f"dmq.observers.{activation.index}")
        program.qparams[activation.index] = observer.calculate_qparams()
    return program


def quantized(program: Program) -> Program:
    weights = {
        p.site.weight: quantize_weight(get_tensor(program.traced.graph_module, p.site.weight), p.weight)
        for p in program.plan.sites
        if p.weight and p.site.weight
    }
    convert_activations(program)
    convert_weights(program, weights)
    return program


def test_observed_graph_computes_the_same(observed: Program) -> None:
    x, t = inputs([900, 480, 20])
    with torch.no_grad():
        assert torch.equal(observed.graph_module(x, t)[0], observed.traced.graph_module(x, t)[0])


def test_sites_that_read_one_value_share_its_integers(observed: Program) -> None:
    shared = [a for a in observed.activations if "mid_block.attentions.0.to_q" in a.sites]
    assert len(shared) == 1
    assert shared[0].sites == tuple(f"mid_block.attentions.0.to_{name}" for name in "qkv")


def test_full_precision_graph_is_left_alone(traced: TracedModel) -> None:
    program = build(traced)
    before = [node.name for node in program.traced.graph.nodes]
    weight = get_tensor(program.traced.graph_module, "conv_in.weight").clone()
    quantized(calibrated(program))
    assert [node.name for node in program.traced.graph.nodes] == before
    assert torch.equal(get_tensor(program.traced.graph_module, "conv_in.weight"), weight)


def test_graph_is_in_the_standard_dialect(traced: TracedModel) -> None:
    program = quantized(calibrated(build(traced)))
    program.graph_module.graph.lint()
    targets = Counter(str(node.target) for node in program.graph_module.graph.nodes if node.op == "call_function")
    sites = [p for p in program.plan.sites if p.quantized]
    assert targets["quantized_decomposed.quantize_per_channel.default"] == len(program.activations)
    assert targets["quantized_decomposed.dequantize_per_channel.default"] == len(program.activations) + len(sites)
    assert targets["aten.argmin.default"] == 1
    assert targets["aten.index_select.default"] == 2
    assert not [node for node in program.graph_module.graph.nodes if node.op == "call_module"]
    for node in program.graph_module.graph.nodes:
        if str(node.target).startswith("quantized_decomposed"):
            assert node.meta["dmq"]["kind"] in ("activation", "weight")


def test_weights_are_integers_of_their_bits(traced: TracedModel) -> None:
    program = quantized(calibrated(build(traced)))
    weight = get_tensor(program.graph_module, "mid_block.resnets.0.conv1.weight")
    assert weight.dtype == torch.uint8 and int(weight.max()) <= 15
    assert get_tensor(program.graph_module, "conv_in.weight").dtype == torch.int8


def test_every_sample_has_the_range_of_its_nearest_timestep(traced: TracedModel) -> None:
    program = quantized(calibrated(build(traced)))
    x, t = inputs([950, 700, 420, 0])  # 700 is as near to 900 as to 500: the earlier slot wins
    with torch.no_grad():
        mixed = program.graph_module(x, t)[0]
        for row, slot in enumerate((900, 900, 500, 100)):
            alone = program.graph_module(x[row : row + 1], t[row : row + 1])[0]
            assert float((mixed[row] - alone[0]).square().mean() / alone.square().mean()) < 1e-2  # flips
            assert slot_of(program, t[row : row + 1]).tolist() == [TIMESTEPS.tolist().index(slot)]


def slot_of(program: Program, t: Tensor) -> Tensor:
    argmin = next(node for node in program.graph_module.graph.nodes if node.target == torch.ops.aten.argmin.default)
    seen = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    with torch.no_grad():
        Watch(program.graph_module).run(torch.zeros(len(t), 3, 16, 16), t)
    return seen[argmin.name]


@pytest.mark.parametrize("per_timestep", ["true", "false"])
def test_graph_agrees_with_the_site_by_site_reference(traced: TracedModel, per_timestep: str) -> None:
    """Every site of the quantized graph computes what `quantized_output` says for the same inputs."""
    overrides = [f"schemes.{name}.activation.per_timestep={per_timestep}" for name in ("body", "boundary")]
    program = quantized(calibrated(build(traced, *overrides)))
    x, t = inputs([880, 130])
    slot = slot_of(program, t) if per_timestep == "true" else None
    checked = []

    def check(planned: PlannedSite, args: tuple[object, ...], output: Tensor) -> None:
        # args are dequantized already: rounding them again must change nothing.
        weight = get_tensor(program.traced.graph_module, planned.site.weight or "")
        again = quantized_output(program, planned, (args[0], weight, *args[2:]), slot)
        torch.testing.assert_close(again, output, rtol=1e-4, atol=1e-5)
        checked.append(planned.name)

    sites = {p.site.node: p for p in program.plan.sites if p.quantized}
    with torch.no_grad():
        SiteInterpreter(program.graph_module, sites, check).run(x, t)
    assert len(checked) == len(sites)


def test_static_ranges_are_constants_of_the_graph(traced: TracedModel) -> None:
    overrides = [f"schemes.{name}.activation.per_timestep=false" for name in ("body", "boundary")]
    program = quantized(calibrated(build(traced, *overrides)))
    nodes = [n for n in program.graph_module.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert len(nodes) == 2 * len(program.activations)
    assert all(isinstance(n.args[1], float) and isinstance(n.args[2], int) for n in nodes)
    assert not [n for n in program.graph_module.graph.nodes if n.target == torch.ops.aten.argmin.default]


def test_eight_bits_are_close_and_two_bits_are_not(traced: TracedModel) -> None:
    x, t = inputs([900, 500])
    errors = {}
    for bits in (2, 4, 8):
        program = quantized(calibrated(build(traced, f"schemes.body.weight.bits={bits}")))
        with torch.no_grad():
            exact, found = program.traced.graph_module(x, t)[0], program.graph_module(x, t)[0]
        errors[bits] = float((exact - found).square().mean() / exact.square().mean())
    assert 4 * errors[8] < errors[4] < errors[2] / 4 and errors[8] < 1e-2


def test_attention_operands_can_be_quantized(traced: TracedModel) -> None:
    program = build(traced, "rules.2.scheme=body")
    product = program.plan.by_name["mid_block.attentions.0.attention"]
    assert product.activation is not None and product.weight is None
    mine = [a for a in program.activations if product.name in a.sites]
    assert [operand for a in mine for _, operand in a.consumers] == [0, 1, 2]
    quantized(calibrated(program))
    node = next(n for n in program.graph_module.graph.nodes if n.name == product.site.node)
    assert all("dequantize" in str(node.args[index]) for index in (0, 1, 2))


def test_qparams_of_a_slot_reach_the_graph(traced: TracedModel) -> None:
    """A slot with an enormous scale rounds its samples to zero, and only its samples."""
    program = calibrated(build(traced))
    first = next(a for a in program.activations if a.sites == ("conv_in",))
    scale = program.qparams[first.index].scale.clone()
    scale[1] = 1e6
    program.qparams[first.index] = QParams(scale, program.qparams[first.index].zero_point)
    quantized(program)
    conv_in: dict[str, Tensor] = {}
    sites = {p.site.node: p for p in program.plan.sites if p.name == "conv_in"}
    x, t = inputs([900, 500, 100])
    interpreter = SiteInterpreter(program.graph_module, sites, lambda p, args, out: conv_in.update(x=args[0]))
    with torch.no_grad():
        interpreter.run(x, t)
    norms = conv_in["x"].flatten(1).norm(dim=1)
    assert float(norms[1]) == 0.0 and float(norms[0]) > 1 and float(norms[2]) > 1
