"""Tiny models of diffusers' families, quantized with a recipe of the library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from catalog import traced_tiny
from small_programs import TIMESTEPS
from torch import Tensor

from dmq_fx.compiler import resolve_recipe
from dmq_fx.numerics import quantize_weight
from dmq_fx.planning import make_plan
from dmq_fx.program import Program, convert_activations, convert_weights, group_activations, insert_observers
from dmq_fx.roles import find_sites
from dmq_fx.tracing import TracedModel

CONDITIONS = {"guidance": 3.47, "added_cond_kwargs.time_ids": 997.0, "added_cond_kwargs.resolution": 997.0}
"""What pipelines pass, of a size that bfloat16 does not hold."""


def timesteps_of(name: str) -> Tensor:
    return TIMESTEPS / 1000 if name == "flux" else TIMESTEPS


def architecture_inputs(name: str, timesteps: Sequence[float]) -> tuple[Tensor, ...]:
    """The graph's inputs, a sample for each timestep (of 1000)."""
    model, generator = traced_tiny(name), torch.Generator().manual_seed(1)
    found = []
    for entry, example in zip(model.inputs, model.example, strict=True):
        rows = len(timesteps) if entry.batched else example.shape[0]
        if entry.name == model.timestep:
            value = torch.tensor(timesteps) / (1000 if name == "flux" else 1)
        elif entry.path in CONDITIONS:
            value = torch.full((rows, *example.shape[1:]), CONDITIONS[entry.path])
        elif example.is_floating_point() and entry.batched:
            value = torch.randn(rows, *example.shape[1:], generator=generator)
        else:
            value = example[:1].expand(rows, *example.shape[1:]).clone() if entry.batched else example.clone()
        found.append(value.to(example.dtype))
    return tuple(found)


@cache
def quantized_architecture(name: str, recipe: str = "ptq/w8a8") -> Program:
    """Calibrated on a call for each timestep; made once in a test session: work on a `copy_of` it."""
    model: TracedModel = traced_tiny(name)
    plan = make_plan(resolve_recipe(recipe, ()).recipe, find_sites(model), model)
    program = Program(model, plan, timesteps_of(name))
    group_activations(program)
    insert_observers(program)
    with torch.no_grad():
        for timestep in TIMESTEPS.tolist():
            program.graph_module(*architecture_inputs(name, [timestep] * 4))
    for activation in program.activations:
        observer = program.graph_module.get_submodule(f"dmq.observers.{activation.index}")
        program.qparams[activation.index] = observer.calculate_qparams()
    for planned in plan.sites:
        if planned.weight and planned.site.weight:
            program.weights[planned.site.weight] = quantize_weight(program.scaled_weight(planned), planned.weight)
    convert_activations(program)
    convert_weights(program, program.weights)
    return program
