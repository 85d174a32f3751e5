"""The program: a model's graph on its way from full precision to integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from dmq_fx.calibration.store import CalibrationSet
from dmq_fx.numerics import QParams, QuantizedWeight
from dmq_fx.planning import Plan, PlannedSite
from dmq_fx.program.graph_tools import nodes_by_name, working_copy
from dmq_fx.recipe.language import ActivationSpec
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

    traced: the full-precision graph, never changed. graph_module: the graph being rewritten.
    timesteps: the sampler's model timesteps, [slots], in the order they are visited.
    qparams: scale and zero point of every activation by index, [slots] (or [1]) each.
    weights: integers by weight name. biases: biases that a pass replaced, by name.
    """

    traced: TracedModel
    plan: Plan
    timesteps: Tensor
    graph_module: fx.GraphModule = field(init=False)
    activations: tuple[Activation, ...] = ()
    qparams: dict[int, QParams] = field(default_factory=dict)
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    states: set[str] = field(default_factory=lambda: {"traced"})

    def __post_init__(self) -> None:
        self.graph_module = working_copy(self.traced.graph_module)

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


@dataclass(frozen=True)
class PassContext:
    """What a pass may use beside the program: the calibration inputs, a seed, and a way to tell progress.

    progress: called with (what, done, total).
    """

    calibration: CalibrationSet | None
    seed: int
    device: Any
    progress: Callable[[str, int, int], None]
