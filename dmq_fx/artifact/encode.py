"""A quantized program as the contents of an artifact: packed tensors and the table of what was done to each site."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dmq_fx.artifact.folds import site_folds
from dmq_fx.artifact.packing import pack, pack_rows
from dmq_fx.artifact.tensors import narrow
from dmq_fx.numerics import QuantizedWeight
from dmq_fx.planning import PlannedSite
from dmq_fx.planning.plan import index_bits
from dmq_fx.program.convert_activations import DERIVED
from dmq_fx.program.graph_tools import get_tensor, tensor_names
from dmq_fx.program.program import Program

STATIC_SCALES = "dmq.static_scale"
STATIC_ZERO_POINTS = "dmq.static_zero_point"
INPUT_SCALES = "dmq.input_scale"
SHIFTS = "dmq.shift"
CHANNEL_WIDTHS = "_width"
"""After a weight's name: the place of every channel's bits among the widths that its site lists, packed."""


def encode_tensors(program: Program) -> dict[str, Tensor]:
    """Every tensor that the graph reads, as small as it gets without loss, by its name in the graph.

    Weights are packed to their bits ([bytes], uint8), every channel to its own; zero points of symmetric weights are
    left out; other tensors are narrowed where no value changes. Static activations have one scale and zero point each,
    scaled ones gamma [channels] and shifts [slots or 1, channels]; what follows from these is left out.
    """
    module = program.graph_module
    tensors: dict[str, Tensor] = {}
    for name in tensor_names(module):
        if name in program.weights:
            tensors |= _packed_weight(name, program.weights[name])
        elif _of_weight(program, name, "_zero_point"):
            weight = program.weights[name.removesuffix("_zero_point")]
            if not weight.grid.symmetric:
                tensors[name] = narrow(weight.zero_point)
        elif not name.startswith(f"{DERIVED}."):
            tensors[name] = narrow(get_tensor(module, name))
    for index, gamma in program.input_scales.items():
        tensors[f"{INPUT_SCALES}.{index}"] = narrow(gamma)
    for index, shifts in program.shifts.items():
        tensors[f"{SHIFTS}.{index}"] = narrow(shifts)
    static = [program.qparams[a.index] for a in program.activations if not a.spec.per_timestep]
    if static:
        tensors[STATIC_SCALES] = torch.cat([found.scale for found in static])
        tensors[STATIC_ZERO_POINTS] = narrow(torch.cat([found.zero_point for found in static]))
    return tensors


def _packed_weight(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """A weight's packed integers, and which of its widths every channel has where there are several."""
    bits = weight.channel_bits
    if bits is None:
        grid = weight.grid.widest
        return {name: pack(weight.integers, grid.bits, offset=grid.qmin)}
    found = {name: pack_rows(weight.integers, bits, symmetric=weight.grid.symmetric)}
    widths = bits.unique()  # sorted
    if len(widths) > 1:
        places = torch.searchsorted(widths, bits)
        found[name + CHANNEL_WIDTHS] = pack(places, index_bits(len(widths)), offset=0)
    return found


def _of_weight(program: Program, name: str, suffix: str) -> bool:
    return name.endswith(suffix) and name.removesuffix(suffix) in program.weights


def encode_sites(program: Program, errors: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of `quantization.json`.

    errors: measured numbers by site, such as `sqnr_db`. Precisions are listed once and referred to by position; a
    site's `rule` is its place in the lock.
    """
    schemes: list[dict[str, Any]] = []
    sites = []
    for planned in program.plan.sites:
        folds = site_folds(program, planned)
        sites.append(_site(planned, schemes, {**errors.get(planned.name, {}), **({"folds": folds} if folds else {})}))
    return {
        "parameters": program.plan.parameters,
        "slots": len(program.timesteps),
        "schemes": schemes,
        "sites": sites,
        "biases": sorted(program.biases),
        "splits": list(program.splits),
        "folded": sorted(program.folded),
    }


def _site(planned: PlannedSite, schemes: list[dict[str, Any]], errors: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": planned.name,
        "op": planned.site.op,
        "roles": list(planned.site.roles),
        "shape": list(planned.site.shape),
        "macs": planned.site.macs,
        "scheme": planned.scheme,
    }
    if planned.rule is not None:
        row["rule"] = f"rules[{planned.rule}]"
    if planned.quantized:
        precision = {
            "weight": asdict(planned.weight) if planned.weight else None,
            "activation": asdict(planned.activation) if planned.activation else None,
        }
        if precision not in schemes:
            schemes.append(precision)
        row |= {"precision": schemes.index(precision), "passes": list(planned.passes), "bytes": planned.bytes}
    if planned.widths:
        row["widths"] = [list(pair) for pair in planned.widths]
    if planned.notes:
        row["notes"] = list(planned.notes)
    return row | errors
