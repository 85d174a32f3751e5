"""`omq` and `hawq` end to end: bits, sizes, files, resume, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dmq_fx
from dmq_fx import compiler
from dmq_fx.artifact.decode import decode_program
from dmq_fx.artifact.files import TENSORS
from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.artifact.tensors import load_tensors
from dmq_fx.backend_plan import plan_backend
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.checkpoint import Checkpoint
from dmq_fx.errors import ArtifactError, RecipeError
from dmq_fx.inspection import artifact_rows, site_table
from dmq_fx.inspection.rows import bits as bits_of_row
from dmq_fx.inspection.scheme_text import scheme_text
from dmq_fx.pass_api import order_of
from dmq_fx.passes import hawq
from dmq_fx.passes.hawq import HawqBudget, HawqOptions
from dmq_fx.passes.omq import Omq, OmqOptions
from dmq_fx.planning.bit_allocation import allocate_bits
from dmq_fx.planning.paper_size import body_bits
from dmq_fx.program import Program

RECIPE = """\
dmq: 1
name: test/allocated
extends: mpq-dm/base@^1
schemes:
  body: {{weight: {{bits: {bits}}}}}
passes:
{passes}
"""
FEW = "samples: 16, batch: 8"
UNSCALED = f"{FEW}, prescale: false"
PASSES = {
    "omq": (3, f"  - omq: {{{FEW}, candidates: [20, 40]}}"),
    "plus": (2, f"  - omq: {{{UNSCALED}, candidates: [10, 20], extra: 0.1, activations: true, selector: head_tail}}"),
    "hawq": (3, "  - hawq: {candidates: [1, 2, 3, 4], budget: {bits: 2.5}, probes: 4}"),
    "gptq": (
        3,
        f"  - smoothquant: {{}}\n  - omq: {{{UNSCALED}, candidates: [20], selector: random}}\n  - gptq: {{samples: 8}}",
    ),
}


@pytest.fixture(scope="module")
def build(
    tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path, cache: CalibrationCache, fast: tuple[str, ...]
) -> Any:
    """Compile a recipe once; the artifact and the program that it was written from."""
    folder = tmp_path_factory.mktemp("allocated")
    made: dict[str, tuple[Path, Program]] = {}

    def recipe(name: str, bits: int, passes: str) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(RECIPE.format(bits=bits, passes=passes))
        return path

    def run(name: str) -> tuple[Path, Program]:
        if name not in made:
            programs: list[Program] = []
            save = compiler.save_program
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(compiler, "save_program", lambda p, *a, **k: (programs.append(p), save(p, *a, **k))[1])
                source = recipe(name, *PASSES[name])
                dmq_fx.compile(source, model=str(pipeline_folder), output=folder / name, overrides=fast, cache=cache)
            made[name] = folder / name, programs[0]
        return made[name]

    run.recipe = recipe  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize("name", PASSES)
def test_what_is_loaded_is_what_was_compiled(build: Any, name: str) -> None:
    output, program = build(name)
    loaded, _ = load_program(open_artifact(output))
    assert program.channel_bits and set(loaded.channel_bits) == set(program.channel_bits)
    for weight, bits in program.channel_bits.items():
        assert torch.equal(loaded.channel_bits[weight], bits)
        assert torch.equal(loaded.weights[weight].integers, program.weights[weight].integers.cpu())
        rows = loaded.weights[weight].integers.flatten(1).long()
        assert (rows <= 2 ** bits[:, None] - 1).all()
    assert loaded.plan.totals == program.plan.totals
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([900, 3])
    with torch.no_grad():
        assert torch.equal(dmq_fx.load(output)(x, t).sample, program.graph_module(x, t)[0])


@pytest.mark.parametrize("name", PASSES)
def test_sizes(build: Any, name: str) -> None:
    """The honest one and the file's agree within 3 %; the paper's is a product."""
    output, program = build(name)
    opened = open_artifact(output)
    sizes = {**opened.report["sizes"], "file_bytes": (output / TENSORS).stat().st_size}
    assert sizes["file_bytes"] == pytest.approx(sizes["honest_bytes"], rel=0.03)
    assert sizes["paper_bytes"] == round(program.plan.parameters * body_bits(program.plan) / 8)
    rows = {row["name"]: row for row in opened.sites["sites"]}
    table = dict(program.plan.by_name)
    assert all(rows[site].get("bytes") == planned.bytes for site, planned in table.items() if planned.quantized)


def test_omq_keeps_the_mean(build: Any) -> None:
    """T11, T12: three widths with exactly N on average; the first, last and timestep layers stay at 8 bits."""
    output, program = build("omq")
    assert body_bits(program.plan) == 3.0
    for planned in program.plan.sites:
        if planned.scheme == "body":
            assert planned.weight_bits == 3
            assert planned.widths[0][0] == 2 and planned.widths[-1][0] == 4
            assert planned.widths[0][1] == planned.widths[-1][1] > 0
        elif planned.weight:
            assert planned.widths == () and planned.weight_bits == 8
    report = json.loads((output / "report.json").read_text())["passes"][0]
    for site, row in report["groups"].items():
        best = min(row["errors"], key=row["errors"].get)
        assert str(row["percent"]) == best and set(row["errors"]) == {"20", "40"}
        assert sorted(row["rank"]) == list(range(program.plan.by_name[site].site.shape[0]))
    assert program.input_scales and "scaled" in program.states


def test_more_bits_for_a_tenth(build: Any) -> None:
    _, program = build("plus")
    for planned in program.plan.sites:
        if planned.scheme == "body":
            channels = planned.site.shape[0]
            assert planned.weight_bits == pytest.approx(2 + int(0.1 * channels + 1e-9) / channels)
            assert planned.widths[0][0] == 1
    assert not program.input_scales


def test_hawq_spends_its_budget(build: Any) -> None:
    output, program = build("hawq")
    sites = [planned for planned in program.plan.sites if planned.scheme == "body"]
    spent = sum(planned.site.parameters * planned.weight_bits for planned in sites)
    room = 2.5 * sum(planned.site.parameters for planned in sites)
    assert all(len(planned.widths) == 1 for planned in sites)
    assert room - max(planned.site.parameters for planned in sites) < spent <= room
    assert len({planned.weight_bits for planned in sites}) > 1
    report = json.loads((output / "report.json").read_text())["passes"][0]
    assert report["budget"]["bits"] == [spent, room]
    for row in report["layers"].values():
        sensitivity = list(row["sensitivity"].values())
        assert sensitivity == sorted(sensitivity, reverse=True) and row["curvature"] > 0


def test_a_second_pass_keeps_the_bits(build: Any) -> None:
    _, program = build("gptq")
    report = [planned for planned in program.plan.sites if "gptq" in planned.passes]
    assert report and all(len(planned.widths) == 3 for planned in report)
    assert any(
        not torch.equal(program.weights[p.site.weight or ""].integers, program.nearest_weight(p).integers)
        for p in report
    )


def test_the_table_shows_the_widths(build: Any) -> None:
    output, _ = build("omq")
    rows = artifact_rows(open_artifact(output).sites)
    table = site_table("t", rows)
    cells = [str(cell) for cell in table.columns[5].cells]
    assert "2-4" in cells and "8" in cells
    mixed = next(row for row in rows if len(row["widths"]) > 1)
    assert scheme_text(mixed).startswith("W3 (2/3/4) per-channel asym")
    assert bits_of_row(mixed, "weight") == 3.0


@pytest.mark.parametrize(("name", "last"), [("omq", 2), ("hawq", 2)])
def test_killed_and_resumed_is_the_same(
    build: Any,
    name: str,
    last: int,
    pipeline_folder: Path,
    cache: CalibrationCache,
    fast: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, _ = build(name)
    source, output = build.recipe(name, *PASSES[name]), whole.with_name(f"{name}-resumed")
    options: dict[str, Any] = {"model": str(pipeline_folder), "overrides": fast, "cache": cache, "output": output}
    write, written = Checkpoint.write, []

    def write_and_die(self: Checkpoint, file: Path, *args: Any) -> None:
        write(self, file, *args)
        written.append(file.stem)
        if len(written) == last - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)
    monkeypatch.setattr(Checkpoint, "write", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        dmq_fx.compile(source, **options)
    assert written == [f"00-{name}"] and not output.exists()
    monkeypatch.setattr(Checkpoint, "write", write)
    resumed = dmq_fx.compile(source, resume=True, **options)
    assert resumed.digest == open_artifact(whole).manifest.digest
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", [[[0, 4], [3, 12]], [[3, 8], [2, 8]], [[2, 3], [3, 3], [4, 3]], [[9, 16]]])
def test_widths_that_were_tampered_with(build: Any, damage: list[list[int]]) -> None:
    """Behind the hashes: what reads the table does not trust it."""
    output, program = build("omq")
    opened = open_artifact(output)
    table = json.loads(json.dumps(opened.sites))
    row = next(row for row in table["sites"] if row.get("widths"))
    row["widths"] = damage
    sites = tuple(planned.site for planned in program.plan.sites)
    tensors = load_tensors(output / "model.safetensors")
    with pytest.raises(ArtifactError, match="its parts do not fit together"):
        decode_program(program.original, sites, table, tensors, "here")


@pytest.mark.parametrize(
    ("override", "passes", "message", "hint"),
    [
        (
            "schemes.body.weight.symmetric=true",
            "  - omq: {}",
            "omq needs asymmetric per_channel weights of 2 to 7 bits, and .* has symmetric per_channel weights of",
            "leave omq out of the `passes:`",
        ),
        ("schemes.body.weight.bits=8", "  - omq: {}", "has asymmetric per_channel weights of 8 bits", "the scheme"),
        ("schemes.body.weight.granularity=per_tensor", "  - hawq: {}", "the granularity is per_tensor", "per_channel"),
        (
            "schemes.body.weight.symmetric=true",
            "  - hawq: {candidates: [1, 4]}",
            "symmetric integers have at least 2 bits",
            "symmetric: false",
        ),
        (
            "schemes.body.weight.bits=3",
            "  - hawq: {candidates: [4, 6], budget: {bits: 3.5}}",
            r"the budget 3\.5 bits a weight cannot be met",
            "raise the budget",
        ),
        ("schemes.body.weight.bits=3", "  - hawq: {budget: {megabytes: 0.001}}", "the budget 0.001 MB", "raise"),
        ("schemes.body.weight.bits=3", "  - hawq: {budget: {gbops: 0.001}}", "0.001 billion bit operations", "raise"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    build: Any, pipeline_folder: Path, override: str, passes: str, message: str, hint: str
) -> None:
    source = build.recipe("refused", 3, passes)
    with pytest.raises(RecipeError, match=message) as error:
        dmq_fx.plan(source, model=str(pipeline_folder), overrides=(override,))
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("passes", "message", "hint"),
    [
        ("  - les: {}\n  - omq: {}", "passes 'omq' and 'les' do the same", "prescale: false"),
        ("  - omq: {}\n  - smoothquant: {}", "passes 'smoothquant' and 'omq' do the same", "leave one"),
        ("  - hawq: {}\n  - omq: {}", "passes 'omq' and 'hawq' do the same", "leave one"),
        ("  - gptq: {}\n  - omq: {prescale: false}", "pass 'omq' must come before 'gptq'", "would change"),
        (
            "  - hawq: {candidates: [2, 4], budget: {latency: {milliseconds: 1, per_gmac: {'2': 1.0}}}}",
            r"latency.per_gmac says nothing of \[4\] bits",
            "",
        ),
        (
            "  - hawq: {candidates: [2], budget: {latency: {milliseconds: 1, per_gmac: {'2': 1.0, '12': 1.0}}}}",
            r"order.yaml:.*: a key of per_gmac must match \^\[1-8\]\$, got '12'",
            "",
        ),
        (
            "  - hawq: {candidates: [2], budget: {latency: {milliseconds: 1, per_gmac: {'2': -1.0}}}}",
            r"order.yaml:.*must be greater than 0.*, got -1.0",
            "",
        ),
    ],
)
def test_orders_and_options_that_make_no_sense(build: Any, passes: str, message: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        dmq_fx.compiler.resolve_recipe(build.recipe("order", 3, passes))
    assert hint in (error.value.hint or "")


def test_scales_of_another_pass_stay(build: Any) -> None:
    plain, scaled = (order_of(Omq, OmqOptions(prescale=flag)) for flag in (False, True))
    assert "scaled" in scaled.before & scaled.ensures and "scaled" not in plain.before | plain.ensures
    dmq_fx.compiler.resolve_recipe(build.recipe("both", 3, "  - les: {}\n  - omq: {prescale: false}"))


@pytest.mark.parametrize(("budget", "measure"), [("megabytes", "bytes"), ("gbops", "bops")])
def test_budgets_by_their_own_measure(build: Any, pipeline_folder: Path, budget: str, measure: str) -> None:
    """What is spent is what the plan then says."""
    source = build.recipe("budget", 3, "  - hawq: {candidates: [2, 3, 4]}")
    plan = dmq_fx.plan(source, model=str(pipeline_folder))
    unit = 1e6 if measure == "bytes" else 1e9
    most = 0.99 * getattr(plan.totals, measure)
    options = HawqOptions(candidates=(2, 3, 4), budget=HawqBudget(**{budget: most / unit}))
    targets, left = hawq._targets(plan, options)
    assert {reason.split(":")[0] for reason in left.values()} <= {"not_allocated"}
    errors = [(9.0 * p.site.parameters, 3.0 * p.site.parameters, 0.0) for p in targets.values()]
    layers = [hawq._layer(plan, p, options, e) for p, e in zip(targets.values(), errors, strict=True)]
    limits = hawq._limits(plan, targets, options)
    chosen = dict(zip(targets, allocate_bits(layers, limits), strict=True))
    changed = [
        replace(p, widths=((chosen[p.site.weight], p.site.shape[0]),)) if p.site.weight in chosen else p
        for p in plan.sites
    ]
    spent = getattr(replace(plan, sites=tuple(changed)).totals, measure)
    assert limits[0].spent(layers, list(chosen.values())) == spent
    assert 0.95 * most < spent <= most


def test_a_budget_of_time(build: Any, pipeline_folder: Path) -> None:
    table = "per_gmac: {'2': 1.0, '3': 2.0, '4': 4.0}"
    for milliseconds, fits in ((1e-5, False), (1.0, True)):
        budget = f"{{latency: {{milliseconds: {milliseconds}, {table}}}}}"
        source = build.recipe("time", 3, f"  - hawq: {{candidates: [2, 3, 4], budget: {budget}}}")
        if fits:
            dmq_fx.plan(source, model=str(pipeline_folder))
        else:
            with pytest.raises(RecipeError, match="the budget 1e-05 ms cannot be met"):
                dmq_fx.plan(source, model=str(pipeline_folder))


@pytest.mark.parametrize("name", ["plus", "gptq"])
def test_other_selectors(build: Any, name: str) -> None:
    """head_tail takes more bits for the first channels and fewer for the last; random does not."""
    bits = list(build(name)[1].channel_bits.values())
    ends = all(found[0] == found.max() and found[-1] == found.min() for found in bits)
    assert ends == (name == "plus")
    assert all(len(found.unique()) == 3 for found in bits)


def test_plan_of_a_backend_is_for_the_most_bits_of_hawq(tmp_path: Path, pipeline_folder: Path) -> None:
    """Asymmetric weights of eight bits have no kernel: a site that may get them has none for certain."""

    def kernels(candidates: str) -> set[str]:
        recipe = tmp_path / "allocated.yaml"
        recipe.write_text(RECIPE.format(bits=4, passes=f"  - hawq: {{candidates: {candidates}}}"))
        found = plan_backend(compiler.resolve_recipe(recipe), str(pipeline_folder), "x86_int8")
        allocated = [p.name for p in found.plan.sites if "hawq" in p.passes and p.weight and p.activation]
        assert len(allocated) > 10
        return {str(found.kernels[name]) for name in allocated}

    assert kernels("[2, 4]") == {"int8 conv2d", "int8 linear"}
    assert kernels("[4, 8]") == {
        "none: 8-bit weights less their zero point do not fit int8 (symmetric ones do, and 7 bits)"
    }
