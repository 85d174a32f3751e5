"""An artifact's contents as a quantized program again: the rewrites are replayed on a freshly traced graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.artifact.encode import CHANNEL_WIDTHS, INPUT_SCALES, SHIFTS, STATIC_SCALES, STATIC_ZERO_POINTS
from dmq_fx.artifact.packing import unpack, unpack_rows
from dmq_fx.artifact.tensors import restore
from dmq_fx.errors import ArtifactError
from dmq_fx.numerics import ChannelGrid, QParams, QuantizedWeight, weight_grid
from dmq_fx.planning import Plan, PlannedSite
from dmq_fx.planning.plan import index_bits
from dmq_fx.program import (
    Program,
    convert_activations,
    convert_weights,
    group_activations,
    insert_observers,
    insert_output_shift,
)
from dmq_fx.program.convert_activations import SCALES, ZERO_POINTS, derived_tensors
from dmq_fx.program.convert_weights import placed_weights
from dmq_fx.program.graph_tools import get_tensor, set_buffer, tensor_names
from dmq_fx.program.observe import TIMESTEPS
from dmq_fx.program.output_shift import OUTPUT_SHIFT
from dmq_fx.program.split import split_sites
from dmq_fx.recipe.language import ActivationSpec, WeightSpec
from dmq_fx.sites import Site
from dmq_fx.tracing import TracedModel

DAMAGED = "the artifact is damaged, or was written by another version of dmq; compile the recipe again"


def decode_program(
    traced: TracedModel, sites: tuple[Site, ...], table: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> Program:
    """The program that `encode_sites` and `encode_tensors` wrote, on a graph traced again (on any device).

    Raises ArtifactError, at `where`, if table, tensors and graph do not fit together.
    """
    try:
        traced, sites = split_sites(traced, sites, table["splits"])
        plan = Plan(tuple(_planned(row, sites, table) for row in table["sites"]), int(table["parameters"]))
        timesteps = tensors[TIMESTEPS].float() if TIMESTEPS in tensors else torch.zeros(int(table["slots"]))
        program = Program(traced, plan, timesteps, splits=tuple(table["splits"]))
        group_activations(program)
        program.input_scales = _by_activation(program, tensors, INPUT_SCALES)
        program.shifts = _by_activation(program, tensors, SHIFTS)
        program.folded = set(table["folded"])
        insert_observers(program, lambda spec, slots, site: nn.Identity())
        program.qparams = _qparams(program, tensors)
        weights = {p.site.weight: _weight(p, tensors) for p in plan.sites if p.weight and p.site.weight}
        program.channel_bits = _bits_of(weights)
        convert_activations(program)
        convert_weights(program, weights)
        shift = tensors.get(OUTPUT_SHIFT)
        program.output_shift = None if shift is None else shift.float()
        insert_output_shift(program)
        _fill(program, tensors)
        program.biases = {name: get_tensor(program.graph_module, name) for name in table["biases"]}
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ArtifactError(f"its parts do not fit together ({error!r})", where=where, hint=DAMAGED) from error
    return program


def _planned(row: Mapping[str, Any], sites: tuple[Site, ...], table: Mapping[str, Any]) -> PlannedSite:
    site = next((site for site in sites if site.name == row["name"]), None)
    if site is None:
        raise ArtifactError(f"the model has no site {row['name']!r}", hint=DAMAGED)
    precision: dict[str, Any] = table["schemes"][row["precision"]] if "precision" in row else {}
    return PlannedSite(
        site=site,
        rule=int(row["rule"].removeprefix("rules[").removesuffix("]")) if "rule" in row else None,
        scheme=row["scheme"],
        weight=WeightSpec(**precision["weight"]) if precision.get("weight") else None,
        activation=ActivationSpec(**precision["activation"]) if precision.get("activation") else None,
        passes=tuple(row.get("passes", ())),
        notes=tuple(row.get("notes", ())),
        widths=_widths(row, site),
    )


def _widths(row: Mapping[str, Any], site: Site) -> tuple[tuple[int, int], ...]:
    """What a row says of its channels' bits; ValueError if that is not what `Program.allocate` gives."""
    widths = tuple((int(bits), int(channels)) for bits, channels in row.get("widths", ()))
    ascending = sorted({bits for bits, _ in widths})
    if widths and (
        ascending != [bits for bits, _ in widths]
        or not 1 <= ascending[0] <= ascending[-1] <= 8
        or sum(channels for _, channels in widths) != site.shape[0]
    ):
        raise ValueError(f"widths {widths} of a site of shape {site.shape}")
    return widths


def _by_activation(program: Program, tensors: Mapping[str, Tensor], prefix: str) -> dict[int, Tensor]:
    """Stored gamma (float32) or shifts (int64) of the activations that have one."""
    dtype = torch.float32 if prefix == INPUT_SCALES else torch.int64
    stored = {a.index: tensors.get(f"{prefix}.{a.index}") for a in program.activations}
    return {index: tensor.to(dtype) for index, tensor in stored.items() if tensor is not None}


def _qparams(program: Program, tensors: Mapping[str, Tensor]) -> dict[int, QParams]:
    found: dict[int, QParams] = {}
    dynamic = [a for a in program.activations if a.spec.per_timestep]
    static = [a for a in program.activations if not a.spec.per_timestep]
    for names, group in (((SCALES, ZERO_POINTS), dynamic), ((STATIC_SCALES, STATIC_ZERO_POINTS), static)):
        if not group:
            continue
        scales, zero_points = tensors[names[0]].float(), tensors[names[1]].to(torch.int64)
        for place, activation in enumerate(group):
            if activation.spec.per_timestep:
                found[activation.index] = QParams(scales[:, place], zero_points[:, place])
            else:
                found[activation.index] = QParams(scales[place : place + 1], zero_points[place : place + 1])
    return found


def _weight(planned: PlannedSite, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    assert planned.weight is not None
    name = planned.site.weight or ""
    grid = weight_grid(planned.weight, _channel_bits(planned, tensors))
    scale = tensors[f"{name}_scale"].float()
    stored = tensors.get(f"{name}_zero_point")
    if stored is None and not grid.symmetric:
        raise KeyError(f"{name}_zero_point")
    zero_point = torch.zeros_like(scale, dtype=torch.int64) if stored is None else stored.to(torch.int64)
    if isinstance(grid, ChannelGrid):
        integers = unpack_rows(tensors[name], grid.bits, planned.site.shape, symmetric=grid.symmetric, dtype=grid.dtype)
    else:
        integers = unpack(tensors[name], grid.bits, planned.site.shape, offset=grid.qmin, dtype=grid.dtype)
    return QuantizedWeight(integers, scale, zero_point, grid)


def _channel_bits(planned: PlannedSite, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Bits of every output channel, int64 [out], as the artifact has them; None where they are the scheme's."""
    if not planned.widths:
        return None
    widths = torch.tensor([bits for bits, _ in planned.widths])
    channels = planned.site.shape[0]
    if len(widths) == 1:
        return widths.expand(channels)
    places = unpack(tensors[f"{planned.site.weight}{CHANNEL_WIDTHS}"], index_bits(len(widths)), (channels,), offset=0)
    found = widths[places]
    counts = tuple((bits, int((found == bits).sum())) for bits, _ in planned.widths)
    if counts != planned.widths:
        raise ArtifactError(f"site {planned.name!r} has channels of {counts}, and its table says {planned.widths}")
    return found


def _bits_of(weights: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    found = {name: weight.channel_bits for name, weight in weights.items()}
    return {name: bits for name, bits in found.items() if bits is not None}


def _fill(program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Put real tensors where the traced graph has placeholders."""
    module = program.graph_module
    known = derived_tensors(program)
    for name, weight in placed_weights(program).items():
        known |= {name: weight.integers, f"{name}_scale": weight.scale, f"{name}_zero_point": weight.zero_point}
    for name in tensor_names(module):
        set_buffer(module, name, known[name] if name in known else _full_precision(module, name, tensors))


def _full_precision(module: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """A stored tensor in the type that the graph has it in, its shape checked against the graph's."""
    expected = get_tensor(module, name)
    stored = tensors[name]
    if stored.shape != expected.shape:
        raise ArtifactError(f"tensor {name!r} has shape {list(stored.shape)}, the model {list(expected.shape)}")
    return restore(stored, expected.dtype)
