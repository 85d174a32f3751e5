"""Quantized programs of a few layers with made-up ranges, and the same programs lowered."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from dmq_fx.lowering.cpu import multiplies_exactly
from dmq_fx.lowering.int8_sites import lower_sites
from dmq_fx.lowering.kernels import int8_kernels, require_kernels
from dmq_fx.lowering.native import CODE
from dmq_fx.numerics import IntegerGrid, QParams
from dmq_fx.planning import Plan, PlannedSite
from dmq_fx.program import (
    Program,
    convert_activations,
    convert_weights,
    fold_norms,
    group_activations,
    insert_observers,
)
from dmq_fx.program.graph_tools import working_copy
from dmq_fx.program.program import Activation
from dmq_fx.program.scaling import channel_axis, fits_shifted, sites_of
from dmq_fx.recipe.language import ActivationSpec, WeightSpec
from dmq_fx.roles import find_sites
from dmq_fx.sites import Site
from dmq_fx.tracing import TracedModel, trace

TIMESTEPS = torch.tensor([900.0, 500.0, 100.0])
CHANNELS, SIZE = 6, 5
W4, W8 = WeightSpec(bits=4, symmetric=False), WeightSpec(bits=8)
UNSIGNED = WeightSpec(bits=8, symmetric=False)
"""Weights that no int8 kernel takes: less their zero point they need nine bits."""
STATIC, BY_TIMESTEP = ActivationSpec(bits=8), ActivationSpec(bits=8, per_timestep=True)
Specs = tuple[WeightSpec | None, ActivationSpec | None]

needs_vnni = pytest.mark.skipif(
    not (torch.cpu._is_vnni_supported() and multiplies_exactly()), reason="int8 kernels need a CPU with VNNI"
)

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "image": lambda x: x,
    "line": lambda x: x.flatten(2),
    "volume": lambda x: x.unflatten(2, (-1, 1)),
    "row": lambda x: x[:, :, 0, 0],
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "pixels": lambda x: x.permute(0, 2, 3, 1),
}
"""A sample [batch, channels, height, width] as layers take it."""


class Layers(nn.Module):
    """Each layer on a value of its own: the sample, rearranged, times a power of two (so that ties stay ties)."""

    def __init__(self, layers: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer for _, layer in layers)
        self.views = tuple(view for view, _ in layers)

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        one = (1.0 + timestep // 1000).reshape(-1, 1, 1, 1)  # so that the values follow the timestep's batch
        values = (sample * (one * 2.0 ** (i % 3 - 1)) for i in range(len(self.layers)))
        return tuple(layer(VIEWS[view](x)) for view, layer, x in zip(self.views, self.layers, values, strict=True))


def traced(module: nn.Module, dtype: torch.dtype = torch.float32, size: int = SIZE) -> TracedModel:
    """The trace of a module that takes (sample, timestep), with seeded weights."""
    sample = torch.zeros(2, CHANNELS, size, size, dtype=dtype)
    return trace(seeded(module).to(dtype), {"sample": sample, "timestep": torch.tensor([1, 2])})


def seeded(module: nn.Module) -> nn.Module:
    """The module in eval mode, with weights of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    return module.eval()


def traced_layers(*layers: tuple[str, nn.Module]) -> TracedModel:
    return traced(Layers(layers))


@dataclass(frozen=True)
class Pair:
    """A quantized program, and the same after `lower_sites`."""

    fake: Program
    lowered: Program


def grouped(model: TracedModel, specs: Callable[[Site], Specs] | Specs, sites: Sequence[Site] | None = None) -> Program:
    """A program whose activations are grouped. specs: the precision of every site, or of each."""
    found = []
    for site in find_sites(model) if sites is None else sites:
        weight, activation = specs(site) if callable(specs) else specs
        found.append(PlannedSite(site, 0, "body", weight if site.weight else None, activation, ()))
    program = Program(model, Plan(tuple(found), 0), TIMESTEPS)
    group_activations(program)
    return program


def mix_bits(program: Program, fewest: int, most: int, seed: int = 0) -> None:
    """Bits of their own for the output channels of every weight; the first has the most."""
    generator = torch.Generator().manual_seed(seed)
    for planned in program.plan.sites:
        if planned.weight and planned.site.weight:
            bits = torch.randint(fewest, most + 1, (planned.site.shape[0],), generator=generator)
            bits[0] = most
            program.allocate(planned.site.weight, bits)


def converted(program: Program, *, seed: int = 0, ties: bool = False) -> Program:
    """Integers of made-up ranges in place of a grouped program's activations and weights.

    ties: scales are powers of two, so that values on their halves lie exactly between two integers.
    """
    generator = torch.Generator().manual_seed(seed)
    insert_observers(program)
    for activation in program.activations:
        program.qparams[activation.index] = _qparams(activation, generator, ties)
    for planned in program.plan.sites:
        if planned.weight and planned.site.weight:
            program.weights[planned.site.weight] = program.nearest_weight(planned)
    fold_norms(program)
    convert_activations(program)
    convert_weights(program, program.weights)
    return program


def _qparams(activation: Activation, generator: torch.Generator, ties: bool) -> QParams:
    slots = len(TIMESTEPS) if activation.spec.per_timestep else 1
    grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)
    scale = (1 + torch.rand(slots, generator=generator)) * 2.0 ** (2 - grid.bits)
    zero_point = torch.randint(0, grid.qmax + 1, (slots,), generator=generator)
    return QParams(
        torch.exp2(scale.log2().floor()) if ties else scale,
        torch.zeros_like(zero_point) if grid.symmetric else zero_point,
    )


def scale_channels(program: Program, *, gamma: bool = False, shifts: int = 0, seed: int = 0) -> None:
    """Give every activation of a grouped program that can have them gamma, and shifts in this many slots.

    Shifts are as large as the weights allow, 3 at most.
    """
    generator = torch.Generator().manual_seed(seed)
    for activation in program.activations:
        axis = channel_axis(program, activation)
        if axis is None:
            continue
        channels = int(program.nodes[activation.producer].meta["val"].shape[axis])
        if gamma:
            program.input_scales[activation.index] = torch.rand(channels, generator=generator) * 3 + 0.2
        sites = sites_of(program, activation)
        largest = max(k for k in range(4) if all(p.weight and fits_shifted(p, k) for p in sites) or not k)
        if shifts:
            rows = shifts if activation.spec.per_timestep else 1
            found = torch.randint(0, largest + 1, (rows, channels), generator=generator)
            found[0, 0] = largest
            program.shifts[activation.index] = found


def copy_of(program: Program) -> Program:
    """The same program with a graph of its own."""
    found = copy.copy(program)
    found.graph_module = working_copy(program.graph_module)
    return found


def lower(fake: Program) -> Pair:
    """Every site that can have a kernel on it; checked."""
    lowered = copy_of(fake)
    kernels = int8_kernels(lowered)
    require_kernels(kernels, lower_sites(lowered, kernels))
    return Pair(fake, lowered)


def kernel_nodes(graph: fx.Graph) -> dict[str, fx.Node]:
    """The calls of kernels, by site."""
    return {node.meta["dmq"]["site"]: node for node in graph.nodes if "kernel" in node.meta.get("dmq", {})}


def c_calls(folder: Path, name: str) -> int:
    """How often native code in a folder calls the C function of an own operator; by way of Python it calls none."""
    with zipfile.ZipFile(folder / CODE) as archive:
        (source,) = (name for name in archive.namelist() if name.endswith(".wrapper.cpp"))
        text = archive.read(source).decode()
    assert "dmq::" not in text.replace("// dmq::", "")
    return text.count(f"CHECK(aoti_torch_cpu_{name}(")


def inputs(timestep: float, batch: int = 2, *, seed: int = 0, step: float = 0.0) -> tuple[Tensor, ...]:
    """Samples of one timestep. step: what their values are multiples of."""
    sample = torch.randn(batch, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    if step:
        sample = (sample / step).round() * step
    return sample, torch.full((batch,), timestep, dtype=torch.int64 if timestep == int(timestep) else torch.float32)
