"""Outlier-driven mixed quantization: N - 1, N or N + 1 bits for every output channel, N on average.

Feng et al., "MPQ-DM: Mixed Precision Quantization for Extremely Low Bit Diffusion Models" (AAAI 2025). Inputs and
weights are balanced by channel (`prescale`), output channels ranked by the kurtosis of their weights, and of six ways
to move a bit from the tame channels to those with outliers a site takes the one with the least output error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.errors_by_site import finite
from dmq_fx.calibration.extremes import Extremes, balanced, channel_extremes
from dmq_fx.calibration.local_loss import LocalLoss
from dmq_fx.calibration.minibatches import Minibatches
from dmq_fx.calibration.streaming import site_viewer
from dmq_fx.calibration.width_errors import WidthErrors
from dmq_fx.errors import CalibrationError, RecipeError
from dmq_fx.numerics import QuantizedWeight, quantize_weight
from dmq_fx.numerics.channel_allocation import Candidate, candidates, kurtosis, order_by, output_error
from dmq_fx.pass_api import PASSES, Order, PassResult
from dmq_fx.planning import Plan, PlannedSite
from dmq_fx.program.program import PassContext, Program
from dmq_fx.program.scaling_groups import scaling_groups
from dmq_fx.recipe.language import option

STEPS = (-1, 0, 1)
"""What is added to the scheme's bits, in the order of the errors' rows."""
BEFORE = frozenset({"allocated", "observed", "assigned", "rounded"})


@dataclass(frozen=True, kw_only=True)
class OmqOptions:
    """Options of `omq`."""

    prescale: bool = option(
        "balance inputs and weights by channel first, sqrt(max|X| / max|W|); false where `les` or `smoothquant` has "
        "scaled them, or to see what it is worth",
        default=True,
    )
    selector: str = option(
        "which channels get more bits and which fewer: by the kurtosis of their weights, at random, or the first and "
        "the last (the paper's baselines)",
        default="kurtosis",
        choices=("kurtosis", "random", "head_tail"),
    )
    candidates: tuple[int, ...] = option(
        "percent of the output channels that get a bit more, and as many one fewer; the release tries 0 and 10",
        default=(0, 10, 20, 30, 40, 50),
        choices=(0, 10, 20, 30, 40, 50),
        min_items=1,
    )
    extra: float = option(
        "share of the output channels that get a bit more beside those (MPQ-DM+: 0.1)",
        default=0.0,
        minimum=0.0,
        maximum=0.5,
    )
    activations: bool = option(
        "compare errors with rounded inputs (the paper's equation) instead of full-precision ones (the release)",
        default=False,
    )
    range: str = option(
        "ranges of the weights that are compared: the scheme's, or min and max (the release)",
        default="scheme",
        choices=("scheme", "minmax"),
    )
    samples: int = option(
        "calibration rows that errors are measured on, drawn at random, in whole batches",
        default=256,
        minimum=1,
        maximum=2**20,
    )
    batch: int = option("rows of a forward, of mixed timesteps", default=32, minimum=1, maximum=4096)


@PASSES.register("omq")
class Omq:
    """Bits of every output channel of the sites that it is asked for; and, with `prescale`, gamma of their inputs."""

    Options = OmqOptions
    requires = frozenset({"grouped"})
    ensures = frozenset({"allocated"})
    before = BEFORE

    @staticmethod
    def order(options: OmqOptions) -> Order:
        """Pre-scaling is a scaling like others: a recipe has one."""
        scaled = frozenset({"scaled"} if options.prescale else ())
        advice = "leave one of them out, or say `prescale: false` for omq, which keeps the other's scales"
        return Order(Omq.requires, Omq.ensures | scaled, BEFORE | scaled, advice)

    @staticmethod
    def run(program: Program, options: OmqOptions, context: PassContext) -> PassResult:
        if context.calibration is None:
            raise CalibrationError("omq needs calibration inputs")
        targets, left = _targets(program.plan)
        if not targets:
            return PassResult((), {"left": left})
        search = _Search(program, options, context, targets)
        search.measure()
        report = {planned.name: search.choose(planned) for planned in targets.values()}
        names = tuple(p.name for p in program.plan.for_pass("omq") if p.site.weight in targets)
        return PassResult(names, {"groups": report, "not_scaled": search.not_scaled, "left": left})

    @staticmethod
    def check(plan: Plan, options: OmqOptions) -> None:
        """Whether the sites can have what is asked for; raises RecipeError."""
        for planned in _targets(plan)[0].values():
            _candidates(planned, options)

    @staticmethod
    def expected_bits(plan: Plan, options: OmqOptions) -> dict[str, tuple[float, str]]:
        """Mean bits of every site, and from where to where those of its channels may go."""
        targets, _ = _targets(plan)
        found = {}
        for planned in plan.for_pass("omq"):
            if planned.site.weight not in targets:
                continue
            bits, fits = _bits(planned), _candidates(planned, options)
            steps = [step for step, moved in zip(STEPS, (fits[-1].fewer, 1, fits[-1].more), strict=True) if moved]
            if steps == [0]:
                continue
            mean = bits + (fits[0].more - fits[0].fewer) / planned.site.shape[0]
            note = f"allocated_bits: omq gives output channels {bits + steps[0]} to {bits + steps[-1]} bits"
            found[planned.name] = (mean, f"{note}, {bits + options.extra:g} on average")
        return found

    @staticmethod
    def foresee(program: Program, options: OmqOptions) -> None:
        """The widest of the allocations that may come out."""
        for name, planned in _targets(program.plan)[0].items():
            found = _candidates(planned, options)[-1]
            program.allocate(name, found.bits(torch.arange(planned.site.shape[0]), _bits(planned)))


def _targets(plan: Plan) -> tuple[dict[str, PlannedSite], dict[str, str]]:
    """A site of every weight to allocate, by the weight's name, and why sites that were asked for are left.

    Raises RecipeError for a precision that has no channels of a bit more and of one fewer.
    """
    targets: dict[str, PlannedSite] = {}
    left: dict[str, str] = {}
    for planned in plan.for_pass("omq"):
        spec, name = planned.weight, planned.site.weight
        if spec is None or name is None:
            left[planned.name] = "not_allocated: it has no integer weight"
            continue
        if spec.symmetric or spec.granularity != "per_channel" or spec.bits > 7:
            had = f"{'symmetric' if spec.symmetric else 'asymmetric'} {spec.granularity} weights of {spec.bits} bits"
            raise RecipeError(
                f"omq needs asymmetric per_channel weights of 2 to 7 bits, and {planned.name!r} has {had}",
                where=planned.rule_where,
                hint="change the scheme, or leave omq out of the `passes:` of this site's rule",
            )
        targets.setdefault(name, planned)
    return targets, left


def _bits(planned: PlannedSite) -> int:
    assert planned.weight is not None
    return planned.weight.bits


def _candidates(planned: PlannedSite, options: OmqOptions) -> tuple[Candidate, ...]:
    """The candidates of a site, fewest moved channels first; raises RecipeError if none fits its channels."""
    channels = planned.site.shape[0]
    found = candidates(channels, sorted(set(options.candidates)), options.extra)
    if not found:
        raise RecipeError(
            f"none of omq's candidates {list(options.candidates)} fits {planned.name!r}, of {channels} output channels",
            where=planned.rule_where,
            hint="add the candidate 0",
        )
    return found


class _Search:
    """The pass at work: gammas, then the error of every channel at every width, then the choice."""

    def __init__(
        self, program: Program, options: OmqOptions, context: PassContext, targets: dict[str, PlannedSite]
    ) -> None:
        self.program, self.options, self.context, self.targets = program, options, context, targets
        self.candidates = {name: _candidates(planned, options) for name, planned in targets.items()}
        self.groups, self.not_scaled = scaling_groups(program, "omq")
        saved = context.checkpoint.load() if context.checkpoint else None
        tensors, self.done = (saved[0], int(saved[1]["done"])) if saved else ({}, 0)
        extremes = self._extremes(tensors)
        if options.prescale:
            for group in self.groups:
                index = group.activation.index
                stored = tensors.get(f"gamma.{index}")
                gamma = balanced(program, group, extremes[index]) if stored is None else stored.to(context.device)
                program.input_scales[index] = gamma
        rounded = {name: tuple(self._rounded(planned, step) for step in STEPS) for name, planned in targets.items()}
        inputs = LocalLoss(program, self.groups, extremes) if options.activations else None
        self.errors = WidthErrors(program, rounded, inputs)
        for name, sums in self.errors.sums.items():
            if f"errors.{name}" in tensors:
                sums.copy_(tensors[f"errors.{name}"])
                self.errors.rows[name] = int(tensors[f"rows.{name}"])

    def measure(self) -> None:
        """Run the full-precision model over the calibration rows that are left."""
        options, context = self.options, self.context
        assert context.calibration is not None
        rows = Minibatches(
            self.program.traced, context.calibration, batch=options.batch, seed=context.seed, device=context.device
        )
        total = -(-min(options.samples, rows.rows) // options.batch)
        show = site_viewer(self.program, self.errors.add)
        while self.done < total:
            show(rows.draw(self.done))
            self.done += 1
            context.progress("channel errors", self.done, total)
            if context.checkpoint:
                context.checkpoint.save(self._state, {"done": self.done}, force=self.done == total)

    def choose(self, planned: PlannedSite) -> dict[str, Any]:
        """Give a weight the bits of its best candidate (the first of equals); what to report of it."""
        name, bits = planned.site.weight or "", _bits(planned)
        scaled, errors = self.program.scaled_weight(planned), self.errors.mean(name)
        tails = kurtosis(scaled).cpu()
        order = self._order(planned, tails)
        losses = [output_error(errors, order, candidate) for candidate in self.candidates[name]]
        best = min(range(len(losses)), key=lambda index: losses[index])
        chosen = self.candidates[name][best]
        self.program.allocate(name, chosen.bits(order, bits))
        return {
            "percent": chosen.percent,
            "more": chosen.more,
            "fewer": chosen.fewer,
            "errors": {str(c.percent): finite(x) for c, x in zip(self.candidates[name], losses, strict=True)},
            "kurtosis": [finite(float(value)) for value in (tails.min(), tails.median(), tails.max())],
            "rank": order.tolist(),
        }

    def _extremes(self, tensors: dict[str, Tensor]) -> dict[int, Extremes]:
        """Channel extremes of the groups' inputs, if they are still needed."""
        scaled = all(f"gamma.{group.activation.index}" in tensors for group in self.groups)
        if not self.groups or (not self.options.activations and (scaled or not self.options.prescale)):
            return {}
        assert self.context.calibration is not None
        return channel_extremes(self.program, self.groups, self.context, self.context.calibration)

    def _rounded(self, planned: PlannedSite, step: int) -> QuantizedWeight:
        assert planned.weight is not None
        spec = planned.weight if self.options.range == "scheme" else replace(planned.weight, range="minmax")
        bits = torch.full((planned.site.shape[0],), spec.bits + step)
        return quantize_weight(self.program.scaled_weight(planned), spec, bits)

    def _order(self, planned: PlannedSite, tails: Tensor) -> Tensor:
        """Channels, those first that are to have more bits."""
        if self.options.selector == "kurtosis":
            return order_by(tails)
        if self.options.selector == "head_tail":
            return torch.arange(len(tails))
        digest = hashlib.sha256(f"omq {self.context.seed} {planned.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randperm(len(tails), generator=generator)

    def _state(self) -> dict[str, Tensor]:
        state = {f"errors.{name}": sums for name, sums in self.errors.sums.items()}
        state |= {f"rows.{name}": torch.tensor(rows) for name, rows in self.errors.rows.items()}
        if self.options.prescale:
            indices = [group.activation.index for group in self.groups]
            state |= {f"gamma.{index}": self.program.input_scales[index] for index in indices}
        return state
