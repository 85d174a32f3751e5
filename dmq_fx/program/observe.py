"""Insert observers where the plan wants integers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from dmq_fx.observers import ActivationObserver, make_observer
from dmq_fx.planning.batch_axis import batch_multiple
from dmq_fx.program.graph_tools import (
    finish,
    get_tensor_device,
    last_placeholder,
    nodes_by_name,
    record,
    set_buffer,
)
from dmq_fx.program.program import Activation, Program
from dmq_fx.program.scaling import channel_axis
from dmq_fx.recipe.language import ActivationSpec
from dmq_fx.sites import part_of

aten = torch.ops.aten
OBSERVERS = "dmq.observers"
TIMESTEPS = "dmq.timesteps"

ObserverFactory = Callable[[ActivationSpec, int, str], nn.Module]


def find_activations(program: Program) -> tuple[Activation, ...]:
    """The values to quantize. Sites that read one value at one precision share it (to_q, to_k, to_v).

    Unless they are worked on by other passes, or one is part of a split site: those have quantizers of their own.
    """
    nodes = nodes_by_name(program.graph_module.graph)
    groups: dict[tuple[str, ActivationSpec, tuple[str, ...], bool], list[tuple[str, int, str]]] = {}
    for planned in program.plan.sites:
        if planned.activation is None:
            continue
        for operand in planned.site.operands:
            producer = nodes[planned.site.node].args[operand]
            assert isinstance(producer, fx.Node)
            part = part_of(planned.name, program.splits)
            key = (producer.name, planned.activation, planned.passes, part is not None)
            groups.setdefault(key, []).append((planned.site.node, operand, planned.name))
    return tuple(
        Activation(
            index=index,
            producer=producer,
            consumers=tuple((node, operand) for node, operand, _ in readers),
            sites=tuple(dict.fromkeys(site for _, _, site in readers)),
            spec=spec,
            batch_multiple=batch_multiple(nodes[producer], program.traced) if program.traced.timestep else 0,
        )
        for index, ((producer, spec, _, _), readers) in enumerate(groups.items())
    )


def group_activations(program: Program) -> None:
    """Find what the sites read: from here on the full-precision graph stays as it is.

    Requires "traced", ensures "grouped".
    """
    program.activations = find_activations(program)
    program.states.add("grouped")


def insert_observers(program: Program, factory: ObserverFactory = make_observer) -> None:
    """Put an observer node behind every value to quantize, and the slot of every sample where one needs it.

    Observers of scaled activations see x / gamma. Requires "grouped", ensures "observed".
    """
    module, graph = program.graph_module, program.graph_module.graph
    nodes = nodes_by_name(graph)
    slot = slot_node(program) if any(a.spec.per_timestep for a in program.activations) else None
    device = get_tensor_device(module)
    for activation in program.activations:
        name = f"{OBSERVERS}.{activation.index}"
        observer = factory(activation.spec, len(program.timesteps), activation.sites[0])
        gamma = program.input_scales.get(activation.index)
        if gamma is not None and isinstance(observer, ActivationObserver):
            observer.scale_input(gamma, axis=channel_axis(program, activation) or 0)
        module.add_submodule(name, observer.to(device))
        producer = nodes[activation.producer]
        with graph.inserting_after(_last(producer, slot)):
            node = graph.call_module(name, (producer, slot if activation.spec.per_timestep else None))
        node.meta["val"] = producer.meta.get("val")
        record(node, kind="observer", activation=activation.index, sites=activation.sites)
        for consumer, operand in activation.consumers:
            nodes[consumer].update_arg(operand, node)
    finish(module)
    program.states.add("observed")


def slot_node(program: Program) -> fx.Node:
    """The node of the nearest calibrated timestep of every sample, put there if it is missing.

    Its value: [batch] indices into `program.timesteps`.
    """
    module, graph = program.graph_module, program.graph_module.graph
    known = next((n for n in graph.nodes if n.target == aten.argmin.default and "dmq" in n.meta), None)
    if known is not None:
        return known
    set_buffer(module, TIMESTEPS, program.timesteps.float().to(get_tensor_device(module)))
    timestep = next(n for n in graph.nodes if n.op == "placeholder" and n.name == program.traced.timestep)
    with graph.inserting_after(last_placeholder(graph)):
        table = graph.get_attr(TIMESTEPS)
    node = table
    for target, arguments in (
        (aten.to.dtype, (timestep, torch.float32)),
        (aten.unsqueeze.default, (None, 1)),
        (aten.sub.Tensor, (None, table)),
        (aten.abs.default, (None,)),
        (aten.argmin.default, (None, 1)),
    ):
        with graph.inserting_after(node):
            args = tuple(node if argument is None else argument for argument in arguments)
            node = graph.call_function(target, args)
        record(node, kind="slot")
    return node


def _last(producer: fx.Node, slot: fx.Node | None) -> fx.Node:
    """The later of two nodes of one graph, so that what is inserted behind it may read both."""
    if slot is None:
        return producer
    return slot if producer < slot else producer
