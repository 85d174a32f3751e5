"""Artifacts on torchao's tensors, against fake quantization. What needs CUDA is skipped where there is none."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import Int8Tensor, IntxUnpackedToInt8Tensor

import dmq_fx
from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.backend_api import BACKENDS, LoweringOptions
from dmq_fx.backends import torchao_linear
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.compiler import resolve_recipe
from dmq_fx.errors import BackendError
from dmq_fx.lowering.parity import TOLERANCE, site_errors
from dmq_fx.lowering.torchao_sites import BY_TIMESTEP, GROUPED, STATIC, WEIGHT_ONLY, lower_sites, torchao_kernels
from dmq_fx.lowering.torchao_tensors import multiplies_exactly
from dmq_fx.planning import make_plan
from dmq_fx.program import Program, group_activations
from dmq_fx.program.graph_tools import working_copy
from dmq_fx.roles import find_sites
from dmq_fx.tracing import bind_inputs, retarget

needs_vnni = pytest.mark.skipif(not multiplies_exactly(), reason="int8 products overflow on this CPU")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]

STATIC_RECIPE = """\
dmq: 1
name: test/static
calibration: {samples: 4, batch: 2, steps: 2}
backend: torchao_linear
schemes:
  body:
    weight: {bits: 8}
    activation: {bits: 8, symmetric: true, range: minmax, per_timestep: false}
rules:
  - {match: {op: [linear, conv2d]}, scheme: body}
  - {match: {}, scheme: none, optional: true}
"""
GROUPED_RECIPE = """\
dmq: 1
name: test/grouped
calibration: {samples: 4, batch: 2, steps: 2}
schemes:
  body:
    weight: {bits: 4, symmetric: false, granularity: per_group, group_size: 8}
rules:
  - {match: {op: linear}, scheme: body}
  - {match: {}, scheme: none, optional: true}
"""
FAST = ("calibration.samples=4", "calibration.batch=2", "calibration.steps=2")
CASES: dict[str, tuple[str, str]] = {
    "w8": ("dit", "weight-only/w8"),
    "w4": ("dit", "weight-only/w4"),
    "grouped": ("dit", GROUPED_RECIPE),
    "static": ("sd", STATIC_RECIPE),
    "by-timestep": ("dit", "smoothquant/w8a8"),
}
"""Tiny models and recipes, by name."""


class Artifacts:
    """Artifacts of the cases, compiled and read when they are first asked for."""

    def __init__(self, folder: Path, catalog: ModuleType, cache: CalibrationCache) -> None:
        self.folder, self.catalog, self.cache = folder, catalog, cache
        self._programs: dict[str, Program] = {}

    def path(self, case: str) -> Path:
        family, recipe = CASES[case]
        path = self.folder / case
        if not path.exists():
            if "\n" in recipe:
                (self.folder / f"{case}.yaml").write_text(recipe)
                recipe = str(self.folder / f"{case}.yaml")
            model, inputs = self.catalog.tiny_model(family), self.catalog.tiny_inputs(family)
            dmq_fx.compile(recipe, model=model, inputs=inputs, output=path, overrides=FAST, cache=self.cache)
        return path

    def program(self, case: str, device: str = "cpu") -> Program:
        """The quantized program, with a graph of its own; that reads buffers only, and so is moved by itself."""
        if case not in self._programs:
            self._programs[case] = load_program(open_artifact(self.path(case)))[0]
        found = copy.copy(self._programs[case])
        found.graph_module = working_copy(found.graph_module).to(device)
        retarget(found.graph_module, device)
        return found

    def inputs(self, case: str, device: str = "cpu") -> list[Tensor]:
        """The graph's inputs, with noise in place of the example's zeros."""
        generator = torch.Generator().manual_seed(0)
        return [
            (torch.randn(x.shape, generator=generator) if x.dim() > 1 and x.is_floating_point() else x).to(device)
            for x in bind_inputs(self.program(case).traced, (), self.catalog.tiny_inputs(CASES[case][0]))
        ]


@pytest.fixture(scope="module")
def artifacts(
    tmp_path_factory: pytest.TempPathFactory, architectures: ModuleType, cache: CalibrationCache
) -> Artifacts:
    return Artifacts(tmp_path_factory.mktemp("torchao"), architectures, cache)


def tensors(denoiser: nn.Module) -> list[type]:
    return [type(b) for b in denoiser.buffers() if isinstance(b, (Int8Tensor, IntxUnpackedToInt8Tensor))]


@needs_vnni
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("w8", {WEIGHT_ONLY}),
        ("w4", {WEIGHT_ONLY, GROUPED}),
        ("grouped", {GROUPED}),
        ("static", {STATIC}),
        ("by-timestep", {BY_TIMESTEP}),
    ],
)
def test_every_linear_agrees_with_fake_quantization(
    artifacts: Artifacts, case: str, expected: set[str], device: str
) -> None:
    """Site by site, each with the input that it has in the fake-quantized model."""
    fake, lowered = (artifacts.program(case, device) for _ in range(2))
    kernels = torchao_kernels(lowered)
    reached = lower_sites(lowered, kernels, pad_rows=device == "cuda")
    lowered.graph_module.to(device)
    left = [
        kernels[p.name] for p in lowered.plan.sites if p.quantized and p.site.op == "linear" and p.name not in reached
    ]
    assert all("takes multiples of 8" in kernel.reason for kernel in left)  # tiny models have linears of 12 inputs
    assert len(reached) > len(left) and set(reached.values()) == expected
    errors = site_errors(fake, lowered, artifacts.inputs(case, device))
    assert set(errors) == set(reached)
    assert max(errors.values()) < TOLERANCE


@needs_vnni
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("case", "closeness"), [("w8", 1e-5), ("w4", 1e-5), ("static", 2e-2)])
def test_a_loaded_model_gives_the_same(artifacts: Artifacts, case: str, closeness: float, device: str) -> None:
    """To float rounding where nothing behind it is rounded to integers."""
    loaded = dmq_fx.load(artifacts.path(case), backend="torchao_linear", device=device)
    fake = artifacts.program(case, device)
    assert len(tensors(loaded)) == sum(kernel.name is not None for kernel in torchao_kernels(fake).values()) > 0
    with torch.no_grad():
        (expected, *_), (found, *_) = (
            module(*artifacts.inputs(case, device)) for module in (fake.graph_module, loaded.lowered)
        )
    assert float((found - expected).abs().max() / expected.abs().max()) < closeness


@needs_vnni
def test_the_recipe_may_name_it(artifacts: Artifacts) -> None:
    """Called like the original, and moved as a pipeline moves it."""
    denoiser = dmq_fx.load(artifacts.path("static"))
    assert denoiser.info["backend"] == "torchao_linear"
    assert set(tensors(denoiser.to("cpu"))) == {Int8Tensor}
    inputs = artifacts.catalog.tiny_inputs("sd")
    with torch.no_grad():
        assert denoiser(**inputs).sample.shape == inputs["sample"].shape


def test_convolutions_of_the_same_model_stay(artifacts: Artifacts) -> None:
    program = artifacts.program("static")
    kernels = torchao_kernels(program)
    reasons = {p.site.op: kernels[p.name].reason for p in program.plan.sites if kernels[p.name].name is None}
    assert reasons["conv2d"] == "torchao has no int8 kernel for conv2d"
    assert reasons["attention"] == "full precision"


def test_it_answers_for_a_plan(architectures: ModuleType) -> None:
    """Before there are weights: the same answers as for the quantized program."""
    recipe = resolve_recipe("ptq/w8a8", ()).recipe
    traced = architectures.traced_tiny("dit", "meta")
    program = Program(traced, make_plan(recipe, find_sites(traced), traced), torch.zeros(3))
    group_activations(program)
    kernels = BACKENDS.get("torchao_linear").kernels(program)
    assert {p.site.op for p in program.plan.sites if kernels[p.name].name == BY_TIMESTEP} == {"linear"}
    assert all(kernel.name or kernel.reason for kernel in kernels.values())


def test_site_errors_are_those_of_its_kernels(artifacts: Artifacts) -> None:
    fake, lowered = (artifacts.program("w4") for _ in range(2))
    errors = BACKENDS.get("torchao_linear").site_errors(fake, lowered, artifacts.inputs("w4"))
    assert len(errors) == 22 and max(errors.values()) < TOLERANCE


def test_what_it_refuses(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(case: str = "w8", device: str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        options = LoweringOptions(torch.device(device), dtype=dtype)
        return BACKENDS.get("torchao_linear").lower(artifacts.program(case), options)

    with pytest.raises(BackendError, match="computes in the type that the artifact was compiled with"):
        lower(dtype=torch.bfloat16)
    with pytest.raises(BackendError, match="runs on the CPU or on CUDA, not on meta"):
        lower(device="meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no CUDA device is available"):
        lower(device="cuda")
    monkeypatch.setattr(torchao_linear, "multiplies_exactly", lambda: False)
    with pytest.raises(BackendError, match=r"int8 products overflow on this CPU[\s\S]*ONEDNN_MAX_CPU_ISA"):
        lower("static")
    lower()  # products of floats do not overflow


@needs_cuda
@pytest.mark.parametrize("case", ["w4", "static", "by-timestep"])
def test_a_model_is_compiled_on_cuda(artifacts: Artifacts, case: str) -> None:
    lowered = dmq_fx.load(artifacts.path(case), backend="torchao_linear", device="cuda").lowered
    inputs = artifacts.inputs(case, "cuda")
    with torch.no_grad():
        expected, found = lowered(*inputs)[0], torch.compile(lowered, fullgraph=True)(*inputs)[0]
    assert float((found - expected).square().mean() / expected.square().mean()) < 1e-3
