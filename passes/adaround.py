"""AdaRound: round every weight up or down by what that does to the output of its layer or block.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv:2004.10568), with the block units
and the asymmetric inputs of BRECQ (Li et al., arXiv:2102.05426).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dmq_fx.budget import scaled_iterations, scaled_learning_rate
from dmq_fx.calibration.minibatches import Minibatches
from dmq_fx.calibration.reconstruction import LearningSettings, UnitReconstruction
from dmq_fx.calibration.value_store import Rows, ValueStore
from dmq_fx.errors import CalibrationError
from dmq_fx.numerics import QuantizedWeight
from dmq_fx.numerics.adaround import Rounding, RoundingSchedule
from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.planning import PlannedSite
from dmq_fx.program.pieces import BatchAxis
from dmq_fx.program.program import PassContext, Program
from dmq_fx.program.units import Unit, find_units
from dmq_fx.recipe.language import option

LEARNING_RATE_LIMIT = 0.1
"""Of runs shortened by the budget: at 200 and at 1000 iterations, losses still fall up to here."""

SHARED = "its weight is shared by other sites"
OTHER_AXIS = "the batch is not the first axis of its input or output"


@dataclass(frozen=True, kw_only=True)
class AdaRoundOptions:
    """Options of `adaround`."""

    granularity: str = option(
        "what is reconstructed at once; block: ResnetBlock2D and BasicTransformerBlock, single layers elsewhere",
        default="block",
        choices=("layer", "block"),
    )
    iterations: int = option("iterations for each unit, under the full budget", default=20_000, minimum=1)
    batch: int = option("samples of an iteration", default=32, minimum=1, maximum=4096)
    learning_rate: float = option("of Adam, under the full budget", default=1e-3, exclusive_minimum=0.0, maximum=1.0)
    regularization: float = option("weight of the regulariser that makes fractions 0 or 1", default=0.01, minimum=0.0)
    beta_start: float = option(
        "exponent of the regulariser after the warm-up", default=20.0, minimum=1.0, maximum=100.0
    )
    beta_end: float = option("its exponent at the end; linear in between", default=2.0, minimum=1.0, maximum=100.0)
    warmup: float = option(
        "share of the iterations without the regulariser", default=0.2, minimum=0.0, exclusive_maximum=1.0
    )
    asymmetric: bool = option(
        "a unit's input is that of the model with rounded weights, not that of full precision", default=True
    )
    samples: int = option("samples that units are learned on, at most", default=1024, minimum=1)
    memory_budget: int = option(
        "megabytes of activations that are kept; fewer samples if need be", default=1024, minimum=1
    )


@dataclass
class Run:
    """The state of a pass: integers of all weights by name, the rows of the report, and what a checkpoint held."""

    program: Program
    weights: dict[str, QuantizedWeight]
    sites: dict[str, PlannedSite]
    rows: list[dict[str, Any]] = field(default_factory=list)
    learned: dict[str, QuantizedWeight] = field(default_factory=dict)

    def effective(self, name: str, values: Tensor) -> Tensor:
        """What `values` in place of weight `name` amount to in the graph."""
        return self.program.effective_weight(self.sites[name], values)

    def rounded(self, name: str) -> Tensor:
        """Weight `name` as it is rounded so far."""
        return self.effective(name, self.weights[name].dequantized())


@PASSES.register("adaround")
class AdaRound:
    """Learns the rounding of the weights, unit after unit in the order the model executes them.

    The units' inputs and targets are computed as the units are reached, each from those before it: all weights up to
    there have their final integers, and the activations are in full precision.
    """

    Options = AdaRoundOptions
    requires = frozenset({"grouped"})
    ensures = frozenset({"assigned"})
    before = frozenset({"assigned", "rounded"})

    @staticmethod
    def run(program: Program, options: AdaRoundOptions, context: PassContext) -> PassResult:
        sites, left_out = _sites(program)
        units = find_units(program, sites, options.granularity)
        found = {planned.name for unit in units for planned in unit.sites}
        left_out |= {planned.name: OTHER_AXIS for planned in sites if planned.name not in found}
        settings = _settings(options, context)
        run, samples = _learn(program, units, options, settings, context) if units else (_start(program), 0)
        program.weights |= run.learned
        report = {
            "iterations": settings.schedule.iterations,
            "learning_rate": settings.learning_rate,
            "samples": samples,
            "units": run.rows,
            "kept_nearest": [row["unit"] for row in run.rows if row["kept_nearest"]],
            "single_layers": sorted({unit.note for unit in units if unit.note}),
            "left_out": left_out,
        }
        return PassResult(tuple(sorted(found)), report)


def _sites(program: Program) -> tuple[list[PlannedSite], dict[str, str]]:
    """Sites to learn, and those with a weight that are left to nearest rounding, with the reason."""
    readers = Counter(planned.site.weight or "" for planned in program.plan.sites if planned.site.weight)
    wanted = [p for p in program.plan.for_pass("adaround") if p.weight and p.site.weight]
    shared = {planned.name: SHARED for planned in wanted if readers[planned.site.weight or ""] > 1}
    return [planned for planned in wanted if planned.name not in shared], shared


def _settings(options: AdaRoundOptions, context: PassContext) -> LearningSettings:
    iterations = scaled_iterations(options.iterations, context.budget)
    rate = scaled_learning_rate(options.learning_rate, options.iterations, context.budget, LEARNING_RATE_LIMIT)
    schedule = RoundingSchedule(
        iterations, options.regularization, options.beta_start, options.beta_end, options.warmup
    )
    return LearningSettings(rate, options.batch, context.seed, schedule)


def _learn(
    program: Program,
    units: tuple[Unit, ...],
    options: AdaRoundOptions,
    settings: LearningSettings,
    context: PassContext,
) -> tuple[Run, int]:
    run = _start(program)
    restored, state, iteration = _restore(run, context)
    exact, rounded, samples = _stores(run, units, options, context)
    total = len(units) * settings.schedule.iterations
    for index, unit in enumerate(units):
        inputs, target = _values(unit, exact, rounded)
        if unit.name in restored:
            continue  # its values were computed all the same: those behind it come from them, to the bit
        learner = _learner(run, unit, inputs, target, settings)
        if state:
            learner.restore(state, iteration)
            state = {}
        done = index * settings.schedule.iterations

        def after(learner: UnitReconstruction = learner, done: int = done) -> None:
            context.progress(f"adaround · loss {learner.loss:.3g}", done + learner.iteration, total)
            _save(run, context, learner)

        nearest = learner.error({p.site.weight or "": run.weights[p.site.weight or ""] for p in unit.sites})
        learner.run(after)
        _finish(run, learner, nearest)
    _save(run, context, None)
    return run, samples


def _start(program: Program) -> Run:
    sites = {p.site.weight: p for p in program.plan.sites if p.weight and p.site.weight}
    weights = {}
    for name, planned in sites.items():
        nearest = program.weights.get(name)
        if nearest is None or "adaround" in planned.passes:
            nearest = program.nearest_weight(planned)
        weights[name] = nearest
    return Run(program, weights, sites)


def _stores(
    run: Run, units: tuple[Unit, ...], options: AdaRoundOptions, context: PassContext
) -> tuple[ValueStore, ValueStore | None, int]:
    """Full-precision values, those of the model with rounded weights if wanted, and for how many samples."""
    traced = run.program.traced
    if context.calibration is None:
        raise CalibrationError("adaround needs calibration inputs")
    if not all(entry.batched for entry in traced.inputs if entry.name == traced.timestep):
        raise CalibrationError(
            "adaround mixes timesteps, but the timestep of this model does not follow the batch",
            where=traced.class_name,
        )
    minibatches = Minibatches(
        traced, context.calibration, batch=options.batch, seed=context.seed, device=context.device
    )
    axis = BatchAxis(traced)
    budget = options.memory_budget * 1_000_000
    limit = budget // 2 if options.asymmetric else budget

    def size(unit: Unit) -> int:
        inputs, output = (
            sum(axis.bytes(run.program.nodes[name]) for name in names) for names in (unit.inputs, (unit.output,))
        )
        return max(inputs, output) if options.asymmetric else inputs + output

    largest = max(units, key=size)
    if size(largest) > limit:
        raise CalibrationError(
            f"one sample takes {2 * size(largest) / 1e6:.1f} megabytes, more than adaround's memory_budget",
            where=largest.name,
            hint="raise memory_budget, or use granularity: layer",
        )
    picks = minibatches.spread(min(options.samples, limit // max(1, size(largest))))
    exact = ValueStore(traced, minibatches, picks, batch=options.batch, limit=limit)
    if not options.asymmetric:
        return exact, None, len(picks)
    rounded = ValueStore(
        traced, minibatches, picks, batch=options.batch, limit=limit, weights=run.weights, weight=run.rounded
    )
    return exact, rounded, len(picks)


def _values(unit: Unit, exact: ValueStore, rounded: ValueStore | None) -> tuple[list[Rows], Rows]:
    if rounded is None:
        *inputs, target = exact.get([*unit.inputs, unit.output])
        return inputs, target
    return rounded.get(unit.inputs), exact.get([unit.output])[0]


def _learner(run: Run, unit: Unit, inputs: list[Rows], target: Rows, settings: LearningSettings) -> UnitReconstruction:
    own = {planned.site.weight or "": planned for planned in unit.sites}
    roundings = {
        name: Rounding.of(run.program.scaled_weight(planned), run.weights[name]) for name, planned in own.items()
    }
    fixed = {name: run.rounded(name) for name in unit.weights if name not in own}
    return UnitReconstruction(unit, inputs, target, roundings, fixed, run.effective, settings)


def _finish(run: Run, learner: UnitReconstruction, nearest: float) -> None:
    """Take a unit's integers, unless nearest rounding is as good."""
    unit, integers = learner.unit, learner.hard()
    learned = learner.error(integers)
    kept = not learned < nearest
    changed = sum(int((w.integers != run.weights[name].integers).sum()) for name, w in integers.items())
    run.rows.append(
        {
            "unit": unit.name,
            "sites": len(unit.sites),
            "nearest_loss": nearest,
            "learned_loss": learned,
            "changed": changed / max(1, sum(w.integers.numel() for w in integers.values())),
            "kept_nearest": kept,
        }
    )
    for name, weight in integers.items():
        run.learned[name] = run.weights[name] if kept else weight
    run.weights |= run.learned


def _save(run: Run, context: PassContext, learner: UnitReconstruction | None) -> None:
    """Keep the integers of finished units, and how far the one is that is being learned."""
    if context.checkpoint is None:
        return

    def tensors() -> dict[str, Tensor]:
        found = {f"integers.{name}": weight.integers for name, weight in run.learned.items()}
        return found if learner is None else found | learner.state()

    running = {} if learner is None else {"unit": learner.unit.name, "iteration": learner.iteration}
    context.checkpoint.save(tensors, {"units": run.rows, "running": running}, force=learner is None)


def _restore(run: Run, context: PassContext) -> tuple[set[str], dict[str, Tensor], int]:
    """Names of the units that a checkpoint has finished; state and iteration of the one after them, if it was begun."""
    saved = context.checkpoint.load() if context.checkpoint is not None else None
    if saved is None:
        return set(), {}, 0
    tensors, facts = saved
    run.rows.extend(facts["units"])
    for key, integers in tensors.items():
        if key.startswith("integers."):
            name = key.removeprefix("integers.")
            base = run.weights[name]
            run.learned[name] = QuantizedWeight(integers.to(base.integers), base.scale, base.zero_point, base.grid)
    run.weights |= run.learned
    state = {key: value for key, value in tensors.items() if not key.startswith("integers.")}
    return {row["unit"] for row in run.rows}, state, int(facts["running"].get("iteration", 0))
