"""The program: a model's graph on its way from full precision to integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.budget import DEFAULT_BUDGET
from dmq_fx.calibration.store import CalibrationSet
from dmq_fx.checkpoint import PassCheckpoint
from dmq_fx.errors import InternalError
from dmq_fx.numerics import QParams, QuantizedWeight, quantize_weight, weight_grid
from dmq_fx.planning import Plan, PlannedSite
from dmq_fx.program.graph_tools import get_tensor, nodes_by_name, working_copy
from dmq_fx.recipe.language import ActivationSpec
from dmq_fx.sampling import Sampler
from dmq_fx.tracing import TracedModel


@dataclass(frozen=True)
class Activation:
    """One quantized activation: a value of the graph and the sites that read its integers.

    producer: name of the node that computes the value. consumers: (node name, argument position) pairs.
    batch_multiple: rows of the value for one row of the batch (0 if it does not follow the batch).
    """

    index: int
    producer: str
    consumers: tuple[tuple[str, int], ...]
    sites: tuple[str, ...]
    spec: ActivationSpec
    batch_multiple: int


@dataclass
class Program:
    """A graph being rewritten, and what is known about it.

    traced: the full-precision graph; rewrites that keep what it computes (`split`) replace it before anything else is
    done. original: as it was traced. graph_module: the graph being rewritten.
    timesteps: the sampler's model timesteps, [slots], in the order they are visited.
    splits: sites of the model that were split, into the halves of a concat or the products of attention, by name
    (`split_sites`).
    qparams: scale and zero point of every activation by index, [slots] (or [1]) each.
    input_scales: equivalent scaling, by activation index: gamma, [channels]. The activation is quantized as x / gamma,
    the weights of its sites as W * gamma. folded: those whose 1 / gamma went into the norm before them, whose new
    parameters are in norms, by name.
    shifts: power-of-two scaling, by activation index: k, int64 [slots] or [1] by [channels]. Channel c has the scale
    s * 2^-k_c.
    channel_bits: bits of every output channel, int64 [out], by weight name, where a pass allocated them (`allocate`).
    weights: integers by weight name. biases: biases that a pass replaced, by name.
    output_shift: what is added to the model's output, [slots or 1, channels]; None if nothing is.
    """

    traced: TracedModel
    plan: Plan
    timesteps: Tensor
    graph_module: fx.GraphModule = field(init=False)
    original: TracedModel = field(init=False)
    splits: tuple[str, ...] = ()
    activations: tuple[Activation, ...] = ()
    qparams: dict[int, QParams] = field(default_factory=dict)
    input_scales: dict[int, Tensor] = field(default_factory=dict)
    folded: set[int] = field(default_factory=set)
    norms: dict[str, Tensor] = field(default_factory=dict)
    shifts: dict[int, Tensor] = field(default_factory=dict)
    channel_bits: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    output_shift: Tensor | None = None
    states: set[str] = field(default_factory=lambda: {"traced"})

    def __post_init__(self) -> None:
        self.original = self.traced
        self.graph_module = working_copy(self.traced.graph_module)

    def rewrite(self, traced: TracedModel, plan: Plan, splits: Sequence[str]) -> None:
        """Go on with another full-precision graph that computes the same, and the plan of its sites."""
        if self.states != {"traced"}:
            raise InternalError(f"the full-precision graph cannot be rewritten in the states {sorted(self.states)}")
        self.traced, self.plan, self.splits = traced, plan, (*self.splits, *splits)
        self.graph_module = working_copy(traced.graph_module)
        self.__dict__.pop("nodes", None)

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """Nodes of the full-precision graph by name."""
        return nodes_by_name(self.traced.graph)

    @cached_property
    def timestep_position(self) -> int | None:
        """Which input of the graph is the timestep; None if the model has none."""
        return next((i for i, entry in enumerate(self.traced.inputs) if entry.name == self.traced.timestep), None)

    def activation_of(self, site: PlannedSite, operand: int) -> Activation | None:
        """The quantized activation that feeds argument `operand` of a site, if any."""
        key = (site.site.node, operand)
        return next((activation for activation in self.activations if key in activation.consumers), None)

    def input_scale(self, planned: PlannedSite) -> Tensor | None:
        """gamma of a site's input, [in channels]; None if it is not scaled."""
        if planned.site.weight is None:
            return None
        activation = self.activation_of(planned, 0)
        return None if activation is None else self.input_scales.get(activation.index)

    def scaled_weight(self, planned: PlannedSite) -> Tensor:
        """The tensor that becomes integers: W * gamma, float32, of the weight's shape."""
        weight = get_tensor(self.traced.graph_module, planned.site.weight or "").detach().float()
        gamma = self.input_scale(planned)
        return weight if gamma is None else weight * along_inputs(gamma, weight)

    def nearest_weight(self, planned: PlannedSite) -> QuantizedWeight:
        """A site's weight rounded to the nearest integers, of the bits that its output channels have."""
        assert planned.weight is not None
        bits = self.channel_bits.get(planned.site.weight or "")
        return quantize_weight(self.scaled_weight(planned), planned.weight, bits)

    def allocate(self, weight: str, bits: Tensor) -> None:
        """Give the output channels of a weight bits of their own, int [out]; the plan's sizes follow.

        Raises RecipeError if the scheme of its sites cannot have them.
        """
        if weight in self.weights:
            raise InternalError("bits are allocated before a weight is rounded", where=weight)
        widths = tuple((width, int((bits == width).sum())) for width in sorted(set(bits.tolist())))
        sites = [planned for planned in self.plan.sites if planned.site.weight == weight and planned.weight]
        for planned in sites:
            assert planned.weight is not None
            weight_grid(planned.weight, bits)
        changed = {planned.name: replace(planned, widths=widths) for planned in sites}
        self.plan = replace(self.plan, sites=tuple(changed.get(p.name, p) for p in self.plan.sites))
        self.channel_bits[weight] = bits.detach().to("cpu", torch.int64)

    def effective_weight(self, planned: PlannedSite, values: Tensor) -> Tensor:
        """What `values` in place of W * gamma amount to on an input that is not scaled: values / gamma.

        In the type that the graph computes in.
        """
        gamma = self.input_scale(planned)
        effective = values if gamma is None else values / along_inputs(gamma, values)
        return effective.to(get_tensor(self.traced.graph_module, planned.site.weight or ""))


def along_inputs(gamma: Tensor, weight: Tensor) -> Tensor:
    """gamma, [in], shaped to multiply the input channels of a weight [out, in, ...]."""
    return gamma.to(weight).reshape(1, -1, *([1] * (weight.dim() - 2)))


@dataclass(frozen=True)
class PassContext:
    """What a pass may use beside the program: the calibration inputs, a seed, and a way to tell progress.

    progress: called with (what, done, total). checkpoint: where this pass keeps how far it is; None if nowhere.
    budget: the recipe's, for `dmq_fx.budget`. sampler: the one that calibration inputs are captured from, for passes
    that learn along trajectories of their own.
    """

    calibration: CalibrationSet | None
    seed: int
    device: Any
    progress: Callable[[str, int, int], None]
    checkpoint: PassCheckpoint | None = None
    budget: str = DEFAULT_BUDGET
    sampler: Sampler | None = None
