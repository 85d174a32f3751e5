"""Reconstruction units: cut out of the graph, they compute what they computed in it, and come in its order."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, fx

from dmq_fx.compiler import resolve_recipe
from dmq_fx.planning import make_plan
from dmq_fx.program import Program
from dmq_fx.program.graph_tools import get_tensor, working_copy
from dmq_fx.program.pieces import BatchAxis, NotClosedError, extract
from dmq_fx.program.split import split_sites
from dmq_fx.program.units import Unit, find_units
from dmq_fx.roles import find_sites
from dmq_fx.tracing import TracedModel

MODELS = ("ddpm", "sd", "sdxl", "dit", "pixart-alpha", "cogvideox")


def program_of(traced: TracedModel, sites: tuple | None = None) -> Program:
    recipe = resolve_recipe("weight-only/w4").recipe
    return Program(traced, make_plan(recipe, sites or find_sites(traced), traced), torch.tensor([1.0]))


def units_of(program: Program, granularity: str) -> tuple[Unit, ...]:
    return find_units(program, [planned for planned in program.plan.sites if planned.weight], granularity)


def values_of(traced: TracedModel) -> dict[str, Tensor]:
    """Every value of the graph for its example inputs."""
    found: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Tensor:
            found[n.name] = super().run_node(n)
            return found[n.name]

    with torch.no_grad():
        Watch(traced.graph_module).run(*traced.example)
    return found


@pytest.mark.parametrize("granularity", ["layer", "block"])
@pytest.mark.parametrize("name", MODELS)
def test_units_compute_what_the_graph_computes(architectures: ModuleType, name: str, granularity: str) -> None:
    program = program_of(architectures.traced_tiny(name))
    values = values_of(program.traced)
    units = units_of(program, granularity)
    assert sorted(p.name for unit in units for p in unit.sites) == sorted(
        p.name for p in program.plan.sites if p.weight
    )
    for unit in units:
        weights = [get_tensor(program.traced.graph_module, weight) for weight in unit.weights]
        with torch.no_grad():
            (output,) = unit.module(*(values[name] for name in unit.inputs), *weights)
        assert torch.equal(output, values[unit.output]), unit.name
        assert {planned.site.weight for planned in unit.sites} <= set(unit.weights)


@pytest.mark.parametrize("name", MODELS)
def test_units_come_after_all_that_their_inputs_depend_on(architectures: ModuleType, name: str) -> None:
    program = program_of(architectures.traced_tiny(name))
    for granularity in ("layer", "block"):
        finished: set[str | None] = set()
        for unit in units_of(program, granularity):
            sources = [program.nodes[name] for name in unit.inputs]
            upstream = set(sources)
            while sources:
                fresh = set(sources.pop().all_input_nodes) - upstream
                upstream |= fresh
                sources += fresh
            read = {str(node.target) for node in upstream if node.op == "get_attr"}
            assert read & {p.site.weight for p in program.plan.sites if p.site.weight} <= finished
            finished |= {planned.site.weight for planned in unit.sites}


def test_blocks_are_the_modules_of_the_denoiser(architectures: ModuleType) -> None:
    program = program_of(architectures.traced_tiny("sd"))
    units = {
        unit.name: [planned.name.removeprefix(unit.name) for planned in unit.sites]
        for unit in units_of(program, "block")
    }
    assert list(units)[:4] == [
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "conv_in",
        "down_blocks.0.resnets.0",
    ]
    assert units["down_blocks.1.resnets.0"] == [".conv1", ".time_emb_proj", ".conv2", ".conv_shortcut"]
    assert len(units["mid_block.attentions.0.transformer_blocks.0"]) == 10
    assert units["mid_block.attentions.0.proj_in"] == [""]
    inputs = {unit.name: unit.inputs for unit in units_of(program, "block")}
    assert len(inputs["down_blocks.0.resnets.0"]) == 2  # features and time embedding
    assert "encoder_hidden_states" in inputs["mid_block.attentions.0.transformer_blocks.0"]
    assert list(units).index("mid_block.resnets.0") < list(units).index("up_blocks.0.resnets.0")


def test_a_unit_holds_the_other_quantized_weights_of_its_block_too(architectures: ModuleType) -> None:
    program = program_of(architectures.traced_tiny("ddpm"))
    only = [planned for planned in program.plan.sites if planned.name == "mid_block.resnets.0.conv2"]
    (unit,) = find_units(program, only, "block")
    assert unit.name == "mid_block.resnets.0" and [planned.name for planned in unit.sites] == [only[0].name]
    assert "mid_block.resnets.0.conv1.weight" in unit.weights


def test_the_halves_of_a_split_site_are_sites_of_their_block(architectures: ModuleType) -> None:
    traced = architectures.traced_tiny("ddpm")
    name = "up_blocks.0.resnets.0.conv_shortcut"
    rewritten, sites = split_sites(traced, find_sites(traced), {name})
    program = program_of(rewritten, sites)
    unit = next(unit for unit in units_of(program, "block") if unit.name == "up_blocks.0.resnets.0")
    assert {f"{name}.decoder", f"{name}.encoder"} <= {planned.name for planned in unit.sites}
    assert not unit.note
    values = values_of(rewritten)
    weights = [get_tensor(rewritten.graph_module, weight) for weight in unit.weights]
    with torch.no_grad():
        (output,) = unit.module(*(values[name] for name in unit.inputs), *weights)
    assert torch.equal(output, values[unit.output])


def changed(traced: TracedModel) -> tuple[TracedModel, dict[str, fx.Node]]:
    module = working_copy(traced.graph_module)
    return replace(traced, graph_module=module), {node.name: node for node in module.graph.nodes}


def test_a_block_with_two_results_falls_back_to_layers(architectures: ModuleType) -> None:
    traced, nodes = changed(architectures.traced_tiny("ddpm"))
    program = program_of(traced)
    inner = next(p for p in program.plan.sites if p.name == "mid_block.resnets.0.conv1")
    last = next(p for p in program.plan.sites if p.name == "conv_out")
    node = nodes[last.site.node]
    with traced.graph.inserting_before(node):
        mean = traced.graph.call_function(torch.ops.aten.mean.default, (nodes[inner.site.node],))
        mean.meta["val"] = nodes[inner.site.node].meta["val"].mean()
        total = traced.graph.call_function(torch.ops.aten.add.Tensor, (node.args[0], mean))
        total.meta["val"] = node.args[0].meta["val"]  # type: ignore[union-attr]
    node.update_arg(0, total)
    units = {unit.name: unit for unit in units_of(program_of(traced), "block")}
    assert "mid_block.resnets.0" not in units and "mid_block.resnets.1" in units
    note = units["mid_block.resnets.0.conv1"].note
    assert note == "block 'mid_block.resnets.0' is not one unit: 2 of its values are used outside of it"
    assert len(units["mid_block.resnets.0.conv1"].sites) == 1 and not units["conv_out"].note


def test_a_block_with_something_else_in_between_falls_back_to_layers(architectures: ModuleType) -> None:
    traced, nodes = changed(architectures.traced_tiny("ddpm"))
    site = next(site for site in find_sites(traced) if site.name == "mid_block.resnets.0.conv2")
    before = nodes[site.node].args[0]
    assert isinstance(before, fx.Node)
    before.meta["nn_module_stack"] = {"": ("", "UNet2DModel"), "other": ("other", "torch.nn.SiLU")}
    units = {unit.name: unit for unit in units_of(program_of(traced), "block")}
    assert f"{before.name!r}, which is computed outside of it, lies between" in units[site.name].note


def test_sites_whose_batch_is_not_the_first_axis_are_in_no_unit(architectures: ModuleType) -> None:
    program = program_of(architectures.traced_tiny("hunyuan-dit"))
    found = {planned.name for unit in units_of(program, "layer") for planned in unit.sites}
    missing = {planned.name for planned in program.plan.sites if planned.weight} - found
    assert missing == {f"time_extra_emb.pooler.{part}" for part in ("q_proj", "k_proj", "v_proj")}


def test_the_batch_is_one_whatever_symbols_tracing_gave_it(architectures: ModuleType) -> None:
    traced = architectures.traced_tiny("sdxl")  # the batch of `time_ids` has a symbol of its own
    axis, nodes = BatchAxis(traced), {node.name: node for node in traced.graph.nodes}
    site = next(site for site in find_sites(traced) if site.name == "add_embedding.linear_1")
    source = nodes[site.node].args[0]
    assert isinstance(source, fx.Node)
    assert axis.rows(source) == 1 and axis.bytes(source) == 4 * 34
    weight = next(node for node in traced.graph.nodes if node.target == site.weight)
    assert axis.rows(weight) == 0 and axis.bytes(weight) == 4 * 34 * 32


def test_only_tensors_are_arguments_of_a_piece(architectures: ModuleType) -> None:
    traced = architectures.traced_tiny("sd")
    sized = next(n for n in traced.graph.nodes if any(s.name.startswith("sym_size") for s in n.all_input_nodes[1:]))
    piece = extract(traced, {sized}, [sized], ())
    assert piece.inputs == (sized.all_input_nodes[0].name,)  # the size is read off the value
    traced = architectures.traced_tiny("dit")
    part = next(node for node in traced.graph.nodes if node.name == "getitem")
    with pytest.raises(NotClosedError, match="it reads 'chunk', which is no tensor"):
        extract(traced, {part}, [part], ())
