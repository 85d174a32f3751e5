"""Learned equivalent scaling: DMQ (arXiv:2507.12933), with its adaptive timestep weighting (ptq-methods 8.4, 8.5).

Every site's gamma is learned on the site's own error for its full-precision input. One forward of the full-precision
model on a minibatch of mixed timesteps gives the losses of all sites at once, so nothing is cached by site and the
memory does not depend on the number of calibration samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dmq_fx.budget import scaled_iterations, scaled_learning_rate
from dmq_fx.calibration.extremes import channel_extremes, closed_form
from dmq_fx.calibration.local_loss import LocalLoss
from dmq_fx.calibration.minibatches import Minibatches
from dmq_fx.calibration.reconstruction import reproducible
from dmq_fx.calibration.streaming import call_site, site_viewer
from dmq_fx.calibration.timestep_weighting import TimestepWeighting, TimestepWeightingOptions
from dmq_fx.errors import CalibrationError
from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.planning import PlannedSite
from dmq_fx.program.program import PassContext, Program
from dmq_fx.program.scaling_groups import ScalingGroup, scaling_groups
from dmq_fx.recipe.language import option

FASTEST = 0.02
"""Learning rate of the shortest runs."""
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Migration strengths that `init: grid` compares, beside no scaling at all."""
JUDGED = 4
"""Minibatches that the grid, and the end against the beginning, are judged on."""


@dataclass(frozen=True, kw_only=True)
class LesOptions:
    """Options of `les`."""

    iterations: int = option("minibatches, under the budget `full`", default=6000, minimum=1, maximum=10**6)
    batch: int = option("samples of a minibatch, of mixed timesteps", default=32, minimum=1, maximum=4096)
    learning_rate: float = option(
        "of Adam, at the beginning of a cosine decay; shorter budgets raise it", default=1e-3, exclusive_minimum=0.0
    )
    init: str = option(
        "where gamma begins: 1, SmoothQuant's closed form, or the best of a grid of its migration strengths",
        default="grid",
        choices=("ones", "smoothquant", "grid"),
    )
    domain: str = option(
        "what is learned: log gamma, which stays positive, or gamma itself", default="log", choices=("log", "linear")
    )
    timestep_weighting: TimestepWeightingOptions = option(
        "how the loss is averaged over timesteps", factory=TimestepWeightingOptions
    )
    precision: str = option(
        "type of the full-precision forward's convolutions and products",
        default="float32",
        choices=("float32", "bfloat16"),
    )


@PASSES.register("les")
class Les:
    """Learns gamma of every activation whose sites it is asked for; keeps the beginning where that is better."""

    Options = LesOptions
    requires = frozenset({"grouped"})
    ensures = frozenset({"scaled"})
    before = frozenset({"scaled", "observed", "assigned", "rounded"})

    @staticmethod
    def run(program: Program, options: LesOptions, context: PassContext) -> PassResult:
        if context.calibration is None:
            raise CalibrationError("les needs calibration inputs")
        groups, left = scaling_groups(program, "les")
        if not groups:
            return PassResult((), {"left": left})
        learner = Learner(program, groups, options, context)
        learner.learn()
        gammas, losses = learner.judge()
        for group, gamma in zip(groups, gammas, strict=True):
            if gamma is not None:
                program.input_scales[group.activation.index] = gamma
        report = {
            group.sites[0].name: {"loss": losses[index], "gamma": _span(gammas[index])}
            for index, group in enumerate(groups)
        }
        kept = [group.sites[0].name for group, loss in zip(groups, losses, strict=True) if not loss[2] < min(loss[:2])]
        names = tuple(planned.name for group in groups for planned in group.sites)
        return PassResult(names, {"iterations": learner.iterations, "groups": report, "kept": kept, "left": left})


def _span(gamma: Tensor | None) -> list[float] | None:
    return None if gamma is None else [round(float(gamma.min()), 5), round(float(gamma.max()), 5)]


@dataclass
class Learner:
    """The loop, and what it knows: gamma of every group (its logarithm, in that domain), Adam, running losses."""

    program: Program
    groups: tuple[ScalingGroup, ...]
    options: LesOptions
    context: PassContext
    iterations: int = field(init=False)

    def __post_init__(self) -> None:
        calibration, options = self.context.calibration, self.options
        assert calibration is not None
        device = self.context.device
        self.minibatches = Minibatches(
            self.program.traced, calibration, batch=options.batch, seed=self.context.seed, device=device
        )
        self.index_of = {p.name: index for index, group in enumerate(self.groups) for p in group.sites}
        self.extremes = channel_extremes(self.program, self.groups, self.context, calibration)
        self.loss = LocalLoss(self.program, self.groups, self.extremes)
        self.ones = [torch.ones(group.channels, device=device) for group in self.groups]
        slots = max(1, len(self.program.timesteps))
        self.weightings = {
            name: TimestepWeighting(options.timestep_weighting, slots, torch.device(device)) for name in self.index_of
        }
        self.iterations = scaled_iterations(options.iterations, self.context.budget)
        self.rate = scaled_learning_rate(options.learning_rate, options.iterations, self.context.budget, FASTEST)
        self.done = 0

    def learn(self) -> None:
        """Take the iterations that are left; a checkpoint holds everything that the rest depends on."""
        stored = self.context.checkpoint.load() if self.context.checkpoint else None
        begin = self._restore_begin(stored[0]) if stored else self._begin()
        self.begin = begin
        learned = [g.log() if self.options.domain == "log" else g.clone() for g in begin]
        self.parameters = [value.requires_grad_() for value in learned]
        self.adam = torch.optim.Adam(self.parameters, lr=self.rate)
        if stored:
            self._restore(*stored)
        running = 0.0
        while self.done < self.iterations:
            for entry in self.adam.param_groups:
                entry["lr"] = self.rate * 0.5 * (1 + math.cos(math.pi * self.done / self.iterations))
            loss = self._iterate()
            running = loss if running == 0.0 else 0.9 * running + 0.1 * loss
            self.done += 1
            self.context.progress(f"scaling · loss {running:.3g}", self.done, self.iterations)
            if self.context.checkpoint:
                last = self.done == self.iterations
                self.context.checkpoint.save(self._state, {"done": self.done}, force=last)

    def gamma(self, index: int) -> Tensor:
        """gamma of a group, differentiable; [channels]."""
        value = self.parameters[index]
        return value.exp() if self.options.domain == "log" else value.clamp_min(1e-3)

    def _iterate(self) -> float:
        """One minibatch and one step; returns the mean over sites of loss over signal."""
        ratios: list[Tensor] = []
        self.adam.zero_grad()

        def collect(planned: PlannedSite, args: tuple[Any, ...], output: Tensor, slot: Tensor | None) -> None:
            index = self.index_of.get(planned.name)
            if index is None:
                return
            with torch.enable_grad(), torch.autocast(output.device.type, enabled=False):
                output = self._target(planned, args, output)
                losses = self.loss.of_site(planned, args, output, slot, self.gamma(index))
                weighting = self.weightings[planned.name]
                weights = torch.ones_like(losses)
                if slot is not None:
                    power = output.float().square().reshape(len(losses), -1).mean(1)
                    weighting.update(losses, slot, power)
                    weights = weighting.weights(slot)
                # the scale of a site's loss means nothing to Adam; over its signal, it is one that can be shown
                loss = (weights * losses).mean() / output.float().square().mean().clamp_min(1e-12)
                if not bool(torch.isfinite(loss)):
                    raise CalibrationError(
                        f"les diverged: the loss of this site is {loss.item()} at iteration {self.done}",
                        where=planned.name,
                        hint="a smaller passes.les.learning_rate, or leave the site out by a rule's `passes:`",
                    )
                loss.backward()
            ratios.append(losses.detach().mean() / output.float().square().mean().clamp_min(1e-12))

        with reproducible(torch.device(self.context.device)):
            self._viewer(collect)(self.minibatches.draw(self.done))
        self.adam.step()
        return float(torch.stack(ratios).mean())

    def _viewer(self, collect: Any) -> Any:
        return site_viewer(self.program, collect, autocast=self.options.precision == "bfloat16")

    def _target(self, planned: PlannedSite, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The site's full-precision output; computed again where the forward was in bfloat16."""
        if self.options.precision == "float32":
            return output
        with torch.no_grad():
            full = tuple(a.float() if isinstance(a, Tensor) else a for a in args)
            return call_site(self.program, planned, full)

    def _begin(self) -> list[Tensor]:
        """gamma before the first iteration, by `init`."""
        if self.options.init == "ones":
            return [one.clone() for one in self.ones]
        grid = GRID if self.options.init == "grid" else (0.5,)
        candidates = [[self._closed_form(index, alpha) for index in range(len(self.groups))] for alpha in grid]
        if self.options.init == "smoothquant":
            return candidates[0]
        candidates.insert(0, self.ones)
        losses = self._compare(candidates, "starting points")
        best = losses.argmin(0).tolist()
        return [candidates[choice][index].clone() for index, choice in enumerate(best)]

    def _closed_form(self, index: int, alpha: float) -> Tensor:
        group = self.groups[index]
        return closed_form(self.program, group, self.extremes[group.activation.index], alpha)

    def _compare(self, candidates: list[list[Tensor]], what: str) -> Tensor:
        """Plain losses of several gammas of all groups on the same minibatches, [candidates, groups].

        Not weighted: what the weighting makes of a site must not be worse for its sake.
        """
        sums = torch.zeros(len(candidates), len(self.groups), dtype=torch.float64)

        def collect(planned: PlannedSite, args: tuple[Any, ...], output: Tensor, slot: Tensor | None) -> None:
            index = self.index_of.get(planned.name)
            if index is None:
                return
            with torch.autocast(output.device.type, enabled=False):
                output = self._target(planned, args, output)
                for row, gammas in enumerate(candidates):
                    losses = self.loss.of_site(planned, args, output, slot, gammas[index])
                    sums[row, index] += float(losses.mean())

        show = self._viewer(collect)
        for done in range(JUDGED):
            show(self.minibatches.draw(-1 - done))  # minibatches that no iteration draws
            self.context.progress(what, done + 1, JUDGED)
        return sums

    def judge(self) -> tuple[list[Tensor | None], list[list[float]]]:
        """The gammas to take, None for no scaling at all, and the losses of [no scaling, beginning, end]."""
        learned = [self.gamma(index).detach() for index in range(len(self.groups))]
        candidates = [self.ones, self.begin, learned]
        losses = self._compare(candidates, "judging")
        best = losses.nan_to_num(nan=math.inf).argmin(0).tolist()
        chosen = [candidates[row][index] if row else None for index, row in enumerate(best)]
        return chosen, [[float(f"{loss:.6g}") for loss in losses[:, index]] for index in range(len(self.groups))]

    def _state(self) -> dict[str, Tensor]:
        state = {}
        for index, parameter in enumerate(self.parameters):
            moments = self.adam.state[parameter]
            state[f"begin.{index}"] = self.begin[index]
            state[f"value.{index}"] = parameter.detach()
            state |= {f"{name}.{index}": moments[name] for name in ("step", "exp_avg", "exp_avg_sq")}
        return state | {f"running.{name}": weighting.running for name, weighting in self.weightings.items()}

    def _restore_begin(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        return [tensors[f"begin.{index}"].to(one) for index, one in enumerate(self.ones)]

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.done = int(facts["done"])
        for index, parameter in enumerate(self.parameters):
            parameter.data.copy_(tensors[f"value.{index}"])
            self.adam.state[parameter] = {
                "step": tensors[f"step.{index}"].float().cpu(),
                **{name: tensors[f"{name}.{index}"].to(parameter) for name in ("exp_avg", "exp_avg_sq")},
            }
        for name, weighting in self.weightings.items():
            weighting.running = tensors[f"running.{name}"].to(weighting.running)
