"""The gptq pass: better than nearest rounding where it is measured, the same whenever it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dmq_fx
from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.minibatches import Minibatches
from dmq_fx.calibration.store import CalibrationCache, CalibrationSet
from dmq_fx.calibration.streaming import SiteInterpreter
from dmq_fx.compiler import resolve_recipe
from dmq_fx.errors import CalibrationError, RecipeError
from dmq_fx.models import load_model
from dmq_fx.numerics import quantize_weight
from dmq_fx.passes.gptq import Gptq, GptqOptions
from dmq_fx.planning import PlannedSite, make_plan
from dmq_fx.program import PassContext, Program, group_activations
from dmq_fx.roles import find_sites
from dmq_fx.tracing import trace

OPTIONS = GptqOptions(samples=24)


def recipe(folder: Path, options: str = "samples: 24") -> Path:
    path = folder / "gptq.yaml"
    path.write_text(f"dmq: 1\nname: test/gptq\nextends: ptq/w4a8\npasses: [gptq: {{{options}}}]\n")
    return path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path, fast: tuple[str, ...]) -> dict[str, Any]:
    """`ptq/w4a8` of the tiny pipeline without and with gptq, twice, and the calibration inputs."""
    folder = tmp_path_factory.mktemp("gptq")
    cache = CalibrationCache(folder / "cache")
    options: dict[str, Any] = {"model": str(pipeline_folder), "overrides": fast, "cache": cache}
    found: dict[str, Any] = {
        name: dmq_fx.compile(source, output=folder / name, **options)
        for name, source in (("plain", "ptq/w4a8"), ("gptq", recipe(folder)), ("again", recipe(folder)))
    }
    found["inputs"] = next(found_ for key in cache.root.iterdir() if (found_ := cache.get(key.name)))
    return found


Grouped = Callable[[], Program]


@pytest.fixture(scope="module")
def grouped(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Grouped:
    """Makes programs of the tiny model in the state "grouped", all of one trace."""
    traced = trace(load_model(str(pipeline_folder)).denoiser)
    path = recipe(tmp_path_factory.mktemp("recipe"))
    made = make_plan(resolve_recipe(str(path)).recipe, find_sites(traced), traced)

    def make() -> Program:
        program = Program(traced, made, torch.tensor([750.0, 500.0, 250.0, 0.0]))
        group_activations(program)
        program.states.add("grouped")
        return program

    return make


def context_of(inputs: CalibrationSet, **others: Any) -> PassContext:
    return PassContext(inputs, 0, torch.device("cpu"), lambda what, done, total: None, **others)


def integers(program: Program) -> dict[str, Tensor]:
    return {name: weight.integers for name, weight in program.weights.items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_sites_are_closer_to_full_precision(compiled: dict[str, Any]) -> None:
    errors = []
    for name in ("plain", "gptq"):
        rows = open_artifact(compiled[name].output).sites["sites"]
        errors.append({row["name"]: row["sqnr_db"] for row in rows if row.get("sqnr_db") is not None})
    gains = [errors[1][name] - before for name, before in errors[0].items()]
    assert sum(gains) / len(gains) > 1.0


def test_report_says_what_every_site_gained(compiled: dict[str, Any]) -> None:
    report = open_artifact(compiled["gptq"].output).report["passes"][0]
    assert (report["pass"], report["samples"], report["runs"]) == ("gptq", 24, 1)
    errors = report["output_error"]
    assert report["sites"] == len(errors) - len(report["kept_nearest"])
    for name, error in errors.items():
        worse = not error["gptq"] < error["nearest"]
        assert worse == (name in report["kept_nearest"]), name
    better = [error["gptq"] / error["nearest"] for name, error in errors.items() if name not in report["kept_nearest"]]
    assert len(better) > 0.8 * len(errors) and sum(better) / len(better) < 0.8


def test_same_seed_same_digest(compiled: dict[str, Any]) -> None:
    assert compiled["gptq"].digest == compiled["again"].digest != compiled["plain"].digest


def test_scales_are_those_of_nearest_rounding(compiled: dict[str, Any], pipeline_folder: Path) -> None:
    model = load_model(str(pipeline_folder / "unet")).denoiser
    plain, _ = load_program(open_artifact(compiled["plain"].output), model)
    learned, _ = load_program(open_artifact(compiled["gptq"].output), model)
    for name, weight in plain.weights.items():
        assert torch.equal(weight.scale, learned.weights[name].scale)
        assert torch.equal(weight.zero_point, learned.weights[name].zero_point)
    changed = [not torch.equal(w.integers, learned.weights[name].integers) for name, w in plain.weights.items()]
    assert sum(changed) > 0.8 * len(changed)


def test_reported_errors_are_those_of_the_outputs(compiled: dict[str, Any], grouped: Grouped) -> None:
    """Twice the mean squared error of a site's rows, measured on its outputs instead of a Hessian."""
    program = grouped()
    result = Gptq.run(program, replace(OPTIONS, sequential=False), context_of(compiled["inputs"]))
    inputs = Minibatches(program.traced, compiled["inputs"], batch=8, seed=0, device=torch.device("cpu"))
    sums: dict[str, list[float]] = {}

    def measure(planned: PlannedSite, args: tuple[Any, ...], output: Tensor) -> None:
        assert planned.weight is not None and planned.site.weight is not None
        node = program.nodes[planned.site.node]
        rows = output.numel() / planned.site.shape[0]
        nearest = quantize_weight(args[1], planned.weight)
        total = sums.setdefault(planned.name, [0.0, 0.0, 0.0])
        total[2] += rows
        for index, weight in enumerate((nearest, program.weights[planned.site.weight])):
            found = node.target(args[0], weight.dequantized(), *args[2:])  # type: ignore[operator]
            total[index] += float((found - output).double().square().sum())

    watched = {planned.site.node: planned for planned in program.plan.for_pass("gptq") if planned.site.weight}
    interpreter = SiteInterpreter(program.traced.graph_module, watched, measure)
    with torch.no_grad():
        interpreter.run(*inputs.take(inputs.spread(24)))
    for name, (nearest, found, rows) in sums.items():
        reported = result.report["output_error"][name]
        assert reported["nearest"] == pytest.approx(2 * nearest / rows, rel=1e-3), name
        assert reported["gptq"] == pytest.approx(2 * found / rows, rel=1e-3), name


def test_memory_budget_makes_runs_and_sequence_matters(compiled: dict[str, Any], grouped: Grouped) -> None:
    found = {}
    for sequential in (True, False):
        program = grouped()
        options = replace(OPTIONS, memory_budget=1, sequential=sequential)
        result = Gptq.run(program, options, context_of(compiled["inputs"]))
        assert 3 < result.report["runs"] < len(program.weights)
        found[sequential] = integers(program)
    whole = grouped()
    Gptq.run(whole, replace(OPTIONS, sequential=False), context_of(compiled["inputs"]))
    assert same(found[False], integers(whole))  # without a sequence, the budget changes nothing but the time
    assert not same(found[True], found[False])


class Recorder:
    """A checkpoint in memory that keeps every save, and can stop a run after some."""

    def __init__(self, stop_after: int = 10**6, start: tuple[dict[str, Tensor], dict[str, Any]] | None = None) -> None:
        self.stop_after, self.start, self.saves = stop_after, start, 0
        self.last: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.start

    def save(self, tensors: Mapping[str, Tensor] | Callable, facts: Mapping[str, Any], force: bool = False) -> bool:
        assert not callable(tensors)
        self.last = (dict(tensors), {"errors": dict(facts["errors"])})
        self.saves += 1
        if self.saves == self.stop_after:
            raise KeyboardInterrupt
        return True


def test_killed_and_resumed_is_the_same(compiled: dict[str, Any], grouped: Grouped) -> None:
    """Killed in the middle of a run of sites: the rest of that run still sees what its first sites saw."""
    options = replace(OPTIONS, memory_budget=1)
    whole = grouped()
    expected = Gptq.run(whole, options, context_of(compiled["inputs"]))
    stop = len(whole.weights) // 2
    killed = Recorder(stop_after=stop)
    with pytest.raises(KeyboardInterrupt):
        Gptq.run(grouped(), options, context_of(compiled["inputs"], checkpoint=killed))
    resumed, rest = grouped(), Recorder(start=killed.last)
    result = Gptq.run(resumed, options, context_of(compiled["inputs"], checkpoint=rest))
    assert rest.saves == len(whole.weights) - stop
    assert same(integers(resumed), integers(whole)) and result == expected


def test_scaled_inputs_are_rounded_as_the_scaled_problem(compiled: dict[str, Any], grouped: Grouped) -> None:
    """With gamma, the integers stand for W * gamma and the reported error is still that of the outputs."""
    plain, scaled = grouped(), grouped()
    options = replace(OPTIONS, sequential=False)
    for activation in scaled.activations:
        site = next(p for p in scaled.plan.sites if p.name == activation.sites[0])
        if site.site.weight:
            generator = torch.Generator().manual_seed(activation.index)
            channels = site.site.shape[1]
            scaled.input_scales[activation.index] = torch.empty(channels).uniform_(0.5, 2, generator=generator)
    Gptq.run(plain, options, context_of(compiled["inputs"]))
    result = Gptq.run(scaled, options, context_of(compiled["inputs"]))
    assert not same(integers(plain), integers(scaled))
    for planned in scaled.plan.for_pass("gptq"):
        if planned.site.weight is None:
            continue
        weight = scaled.weights[planned.site.weight]
        exact = plain.scaled_weight(planned)
        close = scaled.effective_weight(planned, weight.dequantized())
        assert float((close - exact).square().mean() / exact.square().mean()) < 0.1, planned.name
        error = result.report["output_error"][planned.name]
        assert error["gptq"] <= error["nearest"] or planned.name in result.report["kept_nearest"]


def test_inputs_that_are_not_finite_name_the_site(compiled: dict[str, Any], grouped: Grouped) -> None:
    program = grouped()
    weight = program.traced.graph_module.get_parameter("down_blocks.1.resnets.0.conv1.weight")
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0, 0, 0] = float("inf")
    try:
        with pytest.raises(CalibrationError, match="not finite") as raised:
            Gptq.run(program, OPTIONS, context_of(compiled["inputs"]))
    finally:
        weight.data.copy_(before)  # the trace is shared
    assert raised.value.where is not None and raised.value.where.startswith("down_blocks.1.resnets.0.conv")


def test_it_needs_calibration_inputs(grouped: Grouped) -> None:
    with pytest.raises(CalibrationError, match="gptq needs calibration inputs"):
        Gptq.run(grouped(), OPTIONS, context_of(None))  # type: ignore[arg-type]


def test_it_cannot_come_after_biases_were_corrected(tmp_path: Path) -> None:
    path = tmp_path / "late.yaml"
    path.write_text("dmq: 1\nname: test/late\nextends: ptq/w4a8\npasses: [bias_correction: {}, gptq: {}]\n")
    with pytest.raises(RecipeError, match="pass 'gptq' must come before 'bias_correction'"):
        resolve_recipe(path)
