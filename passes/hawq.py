"""Bits by layer: the fewest where the loss curves least, within a budget of size or operations.

HAWQ-V2 (Dong et al., arXiv:1911.03852) and HAWQ-V3 (Yao et al., arXiv:2011.10680): a layer's sensitivity at b bits is
its mean Hessian diagonal times |Q_b(W) - W|², and an integer linear program chooses. The loss is the difference of the
prediction from full precision's, whose Hessian is a Gauss-Newton matrix (`calibration/curvature.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.curvature import Traces
from dmq_fx.calibration.errors_by_site import finite
from dmq_fx.calibration.minibatches import Minibatches
from dmq_fx.errors import CalibrationError, RecipeError
from dmq_fx.numerics import quantize_weight, weight_grid
from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.planning import Plan, PlannedSite
from dmq_fx.planning.bit_allocation import Layer, Limit, allocate_bits
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import PassContext, Program
from dmq_fx.recipe.language import option


@dataclass(frozen=True, kw_only=True)
class HawqLatency:
    """A time budget, with the time that weights of every width take."""

    milliseconds: float = option("most that a sample's products may take together", exclusive_minimum=0.0)
    per_gmac: dict[str, float] = option(
        "milliseconds of a billion multiply-accumulates, by bits: as measured on the machine that is meant",
        key_pattern="[1-8]",
        exclusive_minimum=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class HawqBudget:
    """What may be spent; all that are given hold. None: as many bits on average as the schemes have."""

    bits: float | None = option("mean bits of the weights that are allocated", default=None, minimum=1.0, maximum=8.0)
    megabytes: float | None = option("size of the model, as `dmq plan` counts it", default=None, exclusive_minimum=0.0)
    gbops: float | None = option(
        "billions of bit operations of a sample, of the model", default=None, exclusive_minimum=0.0
    )
    latency: HawqLatency | None = option("time of the sites that are allocated", default=None)


@dataclass(frozen=True, kw_only=True)
class HawqOptions:
    """Options of `hawq`."""

    candidates: tuple[int, ...] = option(
        "bits that a site may get; 1 needs a zero point", default=(2, 3, 4, 6, 8), minimum=1, maximum=8, min_items=1
    )
    budget: HawqBudget = option("what may be spent", factory=HawqBudget)
    probes: int = option("random directions, each with a minibatch of its own", default=100, minimum=1, maximum=10**5)
    batch: int = option("calibration rows of a minibatch, of mixed timesteps", default=4, minimum=1, maximum=4096)

    def __post_init__(self) -> None:
        latency = self.budget.latency
        missing = [bits for bits in sorted(set(self.candidates)) if latency and str(bits) not in latency.per_gmac]
        if missing:
            raise ValueError(f"hawq's latency.per_gmac says nothing of {missing} bits, which are among its candidates")


@PASSES.register("hawq")
class Hawq:
    """Bits of every site that it is asked for, the same for all output channels."""

    Options = HawqOptions
    requires = frozenset({"grouped"})
    ensures = frozenset({"allocated"})
    before = frozenset({"allocated", "assigned", "rounded"})

    @staticmethod
    def run(program: Program, options: HawqOptions, context: PassContext) -> PassResult:
        if context.calibration is None:
            raise CalibrationError("hawq needs calibration inputs")
        targets, left = _targets(program.plan, options)
        if not targets:
            return PassResult((), {"left": left})
        traces = _measure(program, tuple(targets), options, context)
        layers = _layers(program, targets, options, traces)
        limits = _limits(program.plan, targets, options)
        chosen = allocate_bits(layers, limits)
        for layer, bits in zip(layers, chosen, strict=True):
            program.allocate(layer.name, torch.full((targets[layer.name].site.shape[0],), bits))
        names = tuple(p.name for p in program.plan.for_pass("hawq") if p.site.weight in targets)
        report = {
            "probes": traces.done,
            "budget": {limit.name: [finite(limit.spent(layers, chosen)), finite(limit.most)] for limit in limits},
            "layers": _rows(targets, layers, chosen, traces),
            "left": left,
        }
        return PassResult(names, report)

    @staticmethod
    def check(plan: Plan, options: HawqOptions) -> None:
        """Whether the sites can have the candidates, and the budgets can be met; raises RecipeError."""
        targets, _ = _targets(plan, options)
        if targets:
            layers = [_layer(plan, planned, options, (0.0,) * len(_widths(options))) for planned in targets.values()]
            allocate_bits(layers, _limits(plan, targets, options))

    @staticmethod
    def expected_bits(plan: Plan, options: HawqOptions) -> dict[str, tuple[float, str]]:
        """Mean bits of every site as far as the budget says them, and what layers may get."""
        targets, _ = _targets(plan, options)
        if not targets:
            return {}
        limits = _limits(plan, targets, options)
        within = " and ".join(f"{limit.most / limit.divisor:g} {limit.unit}" for limit in limits)
        widths = "/".join(str(bits) for bits in _widths(options))
        note = f"allocated_bits: hawq gives layers {widths} bits within {within}"
        mean = next((limit.most / limit.divisor for limit in limits if limit.name == "bits"), None)
        if mean is None:
            note += "; sizes here are those of the scheme's bits"
        return {
            planned.name: (planned.weight_bits if mean is None else mean, note)
            for planned in plan.for_pass("hawq")
            if planned.site.weight in targets
        }

    @staticmethod
    def foresee(program: Program, options: HawqOptions) -> None:
        """The most bits that every site may get."""
        for name, planned in _targets(program.plan, options)[0].items():
            program.allocate(name, torch.full((planned.site.shape[0],), max(options.candidates)))


def _widths(options: HawqOptions) -> tuple[int, ...]:
    return tuple(sorted(set(options.candidates)))


def _targets(plan: Plan, options: HawqOptions) -> tuple[dict[str, PlannedSite], dict[str, str]]:
    """A site of every weight to allocate, by the weight's name, and why sites that were asked for are left.

    Raises RecipeError for a precision that cannot have the candidates.
    """
    targets: dict[str, PlannedSite] = {}
    left: dict[str, str] = {}
    for planned in plan.for_pass("hawq"):
        if planned.weight is None or planned.site.weight is None:
            left[planned.name] = "not_allocated: it has no integer weight"
            continue
        try:
            weight_grid(planned.weight, torch.tensor([min(options.candidates)]))
        except RecipeError as error:
            raise RecipeError(
                f"site {planned.name!r}: {error.message}", where=planned.rule_where, hint=error.hint
            ) from None
        targets.setdefault(planned.site.weight, planned)
    return targets, left


def _measure(program: Program, weights: tuple[str, ...], options: HawqOptions, context: PassContext) -> Traces:
    assert context.calibration is not None
    minibatches = Minibatches(
        program.traced, context.calibration, batch=options.batch, seed=context.seed, device=context.device
    )
    traces = Traces(program, weights, minibatches, context.seed)
    saved = context.checkpoint.load() if context.checkpoint else None
    if saved:
        traces.sums, traces.squares, traces.done = saved[0]["sums"], saved[0]["squares"], int(saved[1]["done"])
    while traces.done < options.probes:
        traces.probe()
        context.progress("curvature", traces.done, options.probes)
        if context.checkpoint:
            state = {"sums": traces.sums, "squares": traces.squares}
            context.checkpoint.save(state, {"done": traces.done}, force=traces.done == options.probes)
    return traces


def _layers(program: Program, targets: Mapping[str, PlannedSite], options: HawqOptions, traces: Traces) -> list[Layer]:
    layers = []
    for (name, planned), trace in zip(targets.items(), traces.mean().tolist(), strict=True):
        distances = (_distance(program, name, planned, bits) for bits in _widths(options))
        error = tuple(trace / planned.site.parameters * distance for distance in distances)
        layers.append(_layer(program.plan, planned, options, error))
    return layers


def _distance(program: Program, name: str, planned: PlannedSite, bits: int) -> float:
    """|Q_b(W) - W|², of the weight as inputs that are not scaled meet it."""
    assert planned.weight is not None
    scaled = program.scaled_weight(planned)
    rounded = quantize_weight(scaled, planned.weight, torch.full((len(scaled),), bits))
    exact: Tensor = get_tensor(program.traced.graph_module, name).detach().double()
    return float((program.effective_weight(planned, rounded.dequantized()).double() - exact).square().sum())


def _layer(plan: Plan, planned: PlannedSite, options: HawqOptions, error: tuple[float, ...]) -> Layer:
    """A weight with what each of its widths costs."""
    widths = _widths(options)
    users = [site for site in plan.sites if site.site.weight == planned.site.weight]
    at = [[replace(site, widths=((bits, site.site.shape[0]),)) for site in users] for bits in widths]
    gmacs = sum(site.site.macs for site in users) / 1e9
    latency = options.budget.latency
    costs = {
        "bits": tuple(float(planned.site.parameters * bits) for bits in widths),
        "megabytes": tuple(float(sites[0].bytes) for sites in at),
        "gbops": tuple(float(sum(site.bops for site in sites)) for sites in at),
        "latency": tuple(gmacs * latency.per_gmac[str(bits)] if latency else 0.0 for bits in widths),
    }
    return Layer(planned.site.weight or "", widths, error, costs)


def _limits(plan: Plan, targets: Mapping[str, PlannedSite], options: HawqOptions) -> list[Limit]:
    """The budgets; those of the model with what all that is not allocated takes of them."""
    budget, totals = options.budget, plan.totals
    parameters = sum(planned.site.parameters for planned in targets.values())
    bits = budget.bits
    if (budget.bits, budget.megabytes, budget.gbops, budget.latency) == (None,) * 4:
        bits = sum(planned.site.parameters * planned.weight_bits for planned in targets.values()) / parameters
    limits = []
    if bits is not None:
        limits.append(Limit("bits", bits * parameters, "bits a weight", divisor=parameters))
    if budget.megabytes is not None:
        rest = totals.bytes - sum(planned.bytes for planned in targets.values())
        limits.append(Limit("megabytes", budget.megabytes * 1e6, "MB", rest, 1e6))
    if budget.gbops is not None:
        rest = totals.bops - sum(site.bops for site in plan.sites if site.site.weight in targets)
        limits.append(Limit("gbops", budget.gbops * 1e9, "billion bit operations", rest, 1e9))
    if budget.latency is not None:
        limits.append(Limit("latency", budget.latency.milliseconds, "ms"))
    return limits


def _rows(
    targets: Mapping[str, PlannedSite], layers: list[Layer], chosen: tuple[int, ...], traces: Traces
) -> dict[str, Any]:
    """Bits, mean Hessian diagonal with its relative standard error, and the sensitivity at every width, by site."""
    spread = traces.relative_error().tolist()
    return {
        targets[layer.name].name: {
            "bits": bits,
            "curvature": finite(trace / targets[layer.name].site.parameters),
            "relative_error": finite(error),
            "sensitivity": {str(width): finite(value) for width, value in zip(layer.bits, layer.error, strict=True)},
        }
        for layer, bits, trace, error in zip(layers, chosen, traces.mean().tolist(), spread, strict=True)
    }
