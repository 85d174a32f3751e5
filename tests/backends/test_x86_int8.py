"""The backend x86_int8: what it refuses, what it makes of a program, what it keeps for the next time.

Export runs; Inductor and the C++ compiler do not: `interpreted` puts the exported graph in the place of native code.
`tests/lowering/test_native.py` has the real thing.
"""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    SIZE,
    STATIC,
    TIMESTEPS,
    W4,
    W8,
    converted,
    copy_of,
    grouped,
    inputs,
    needs_vnni,
    traced,
)
from torch import Tensor, nn

from dmq_fx.backend_api import BACKENDS, LoweringOptions
from dmq_fx.backends import x86_int8
from dmq_fx.backends.x86_int8 import X86Int8, check_cpu, default_dtype
from dmq_fx.errors import BackendError
from dmq_fx.lowering import native
from dmq_fx.lowering.module import LoweredModule
from dmq_fx.lowering.packages import PackageCache
from dmq_fx.lowering.parity import TOLERANCE
from dmq_fx.program import Program
from dmq_fx.tracing import TracedModel

CPU = torch.device("cpu")
FLOAT = LoweringOptions(compile=False, dtype=torch.float32)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(CHANNELS, CHANNELS)
        self.norm = nn.GroupNorm(2, CHANNELS)
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.linear = nn.Linear(CHANNELS, CHANNELS)
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        emb = self.time((timestep[:, None] / 1000).to(sample.dtype).expand(-1, CHANNELS).sin())
        h = self.norm(self.first(sample) + emb[:, :, None, None])
        tokens = self.linear(h.flatten(2).transpose(1, 2))
        return self.last(h + tokens.transpose(1, 2).unflatten(2, (SIZE, SIZE)))


@pytest.fixture(scope="module")
def model() -> TracedModel:
    return traced(Denoiser())


@pytest.fixture(scope="module")
def program(model: TracedModel) -> Program:
    return converted(grouped(model, (W8, BY_TIMESTEP)))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageCache:
    cache = PackageCache(tmp_path)
    monkeypatch.setattr(x86_int8, "PackageCache", lambda: cache)
    return cache


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch, packages: PackageCache) -> list[Callable[..., Any]]:
    """Exported graphs in place of native code, in the order in which they were made."""
    made: list[Callable[..., Any]] = []

    def compile_and_package(exported: Any, *, package_path: str, **settings: Any) -> str:
        assert settings["inductor_configs"]["aot_inductor.package_constants_in_so"] is False
        made.append(exported.module())
        Path(package_path).write_text(str(len(made) - 1))
        return package_path

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_and_package)
    monkeypatch.setattr(native, "NativeCode", lambda folder: made[int((folder / native.CODE).read_text())])
    return made


def no_reload() -> Program:
    raise AssertionError("the artifact is read again")


def outputs(module: Callable[..., Any], timesteps: Sequence[float] = (900, 500, 77)) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(*inputs(t, 3))[0].float() for t in timesteps])


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_other_devices() -> None:
    with pytest.raises(BackendError, match="x86_int8 runs on the CPU, not on cuda") as refused:
        check_cpu(torch.device("cuda"))
    assert refused.value.hint == "--device cpu, or another --backend"


@pytest.mark.parametrize(
    ("vnni", "architecture"), [(False, "x86_64"), (True, "aarch64"), (True, "arm64")], ids=["no VNNI", "arm", "mac"]
)
def test_cpu_without_the_kernels(vnni: bool, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    with pytest.raises(BackendError, match="needs an x86 CPU with AVX-512 and VNNI") as refused:
        check_cpu(CPU)
    assert torch.backends.cpu.get_cpu_capability() in str(refused.value)
    assert "--backend fake_quant" in refused.value.hint


def test_kernels_that_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(x86_int8, "multiplies_exactly", lambda: False)
    with pytest.raises(BackendError, match="int8 products are rounded on this CPU") as refused:
        check_cpu(CPU)
    assert "ONEDNN_MAX_CPU_ISA" in refused.value.hint
    monkeypatch.setattr(x86_int8, "multiplies_exactly", lambda: True)
    check_cpu(CPU)


def test_nothing_is_done_where_it_cannot_run(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    own = copy_of(program)
    before = str(own.graph_module.graph)
    with pytest.raises(BackendError, match="VNNI"):
        X86Int8.lower(own, FLOAT)
    with pytest.raises(BackendError, match="VNNI"):
        X86Int8.kept(LoweringOptions(digest="a"), no_reload)
    assert str(own.graph_module.graph) == before


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8])
def test_types_that_it_does_not_compute_in(program: Program, dtype: torch.dtype) -> None:
    """Silently float32 otherwise."""
    with pytest.raises(BackendError, match=str(dtype).removeprefix("torch.")):
        X86Int8.lower(copy_of(program), LoweringOptions(compile=False, dtype=dtype))


@pytest.mark.parametrize(
    ("bfloat16", "tiles", "expected"),
    [(True, True, torch.bfloat16), (True, False, torch.bfloat16), (False, False, torch.float32)],
)
def test_default_type(bfloat16: bool, tiles: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert default_dtype() == expected


@needs_vnni
def test_kernels_and_their_errors(program: Program) -> None:
    target = BACKENDS.get("x86_int8")
    kernels = target.kernels(program)
    assert {name: str(kernel) for name, kernel in kernels.items()} == {
        "time": "int8 linear",
        "first": "int8 conv2d",
        "linear": "int8 linear",
        "last": "int8 conv2d",
    }
    errors = target.site_errors(copy_of(program), copy_of(program), inputs(500))
    assert set(errors) == set(kernels) and max(errors.values()) < TOLERANCE


@needs_vnni
@pytest.mark.parametrize("spec", [STATIC, BY_TIMESTEP], ids=["static", "per timestep"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2), (None, 3e-2)])
def test_without_a_compiler(
    model: TracedModel, spec: Any, dtype: torch.dtype | None, limit: float, packages: PackageCache
) -> None:
    program = converted(grouped(model, (W8, spec)))
    options = LoweringOptions(compile=False, dtype=dtype, digest="a")
    lowered = X86Int8.lower(copy_of(program), options)
    assert isinstance(lowered, LoweredModule)
    assert error(outputs(lowered), outputs(program.graph_module)) < limit
    assert X86Int8.kept(options, no_reload) is None
    assert list(packages.root.iterdir()) == []


@needs_vnni
@pytest.mark.parametrize("spec", [STATIC, BY_TIMESTEP], ids=["static", "per timestep"])
def test_nothing_holds_weights_beside_the_packed_ones(model: TracedModel, spec: Any) -> None:
    """Not even until garbage is collected: a large model would not fit."""
    program = copy_of(converted(grouped(model, (W8, spec))))
    convolutions = [p.site.weight for p in program.plan.sites if p.site.op == "conv2d" and p.site.weight]
    held = [ref(program.weights[name].integers) for name in convolutions]
    gc.collect()
    gc.disable()
    try:
        lowered = X86Int8.lower(program, LoweringOptions(compile=False))
        assert held and [one() for one in held] == [None] * len(held)
    finally:
        gc.enable()
    assert lowered is not None and program.weights == {}


@needs_vnni
@pytest.mark.parametrize("model_dtype", [torch.bfloat16, torch.float16])
def test_model_in_half_precision_is_refused(model_dtype: torch.dtype) -> None:
    half = converted(grouped(traced(Denoiser(), model_dtype), (W8, BY_TIMESTEP)))
    with pytest.raises(BackendError, match="float32 models"):
        X86Int8.lower(copy_of(half), LoweringOptions(compile=False))


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_time(program: Program, dtype: torch.dtype, interpreted: list[Any], packages: PackageCache) -> None:
    said: list[str] = []
    options = LoweringOptions(digest="a", dtype=dtype, progress=lambda what, done, total: said.append(what))
    assert X86Int8.kept(options, no_reload) is None
    lowered = X86Int8.lower(copy_of(program), options)
    assert said == ["compiling native code for this CPU"] and len(interpreted) == 1
    kept = X86Int8.kept(options, no_reload)
    assert kept is not None and len(interpreted) == 1
    calibrated = TIMESTEPS.tolist()
    assert torch.equal(outputs(kept.lowered, calibrated), outputs(lowered, calibrated))
    assert error(outputs(lowered), outputs(program.graph_module)) < 3e-2
    X86Int8.lower(copy_of(program), options)
    assert len(said) == len(interpreted) == len(list(packages.root.iterdir())) == 1


@needs_vnni
def test_packages_of_other_artifacts_and_types_are_others(program: Program, interpreted: list[Any]) -> None:
    X86Int8.lower(copy_of(program), LoweringOptions(digest="a", dtype=torch.float32))
    for other in (
        LoweringOptions(digest="b", dtype=torch.float32),
        LoweringOptions(digest="a", dtype=torch.bfloat16),
        LoweringOptions(digest="", dtype=torch.float32),
        LoweringOptions(digest="a", dtype=torch.float32, compile=False),
    ):
        assert X86Int8.kept(other, no_reload) is None
    assert X86Int8.kept(LoweringOptions(digest="a", dtype=torch.float32), no_reload) is not None


@needs_vnni
def test_programs_that_are_no_artifacts_share_nothing(model: TracedModel, interpreted: list[Any]) -> None:
    """They have no digest that code could be found again by."""
    options = LoweringOptions(dtype=torch.float32)
    for bits in (W8, W4):
        program = converted(grouped(model, (bits, STATIC)))
        assert error(outputs(X86Int8.lower(copy_of(program), options)), outputs(program.graph_module)) < 1e-3
    assert len(interpreted) == 2


@needs_vnni
def test_what_it_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BACKENDS.names():
        BACKENDS.get(name).check(torch.float32)
    with pytest.raises(BackendError, match="float32 models"):
        X86Int8.check(torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(BackendError, match="needs an x86 CPU with AVX-512 and VNNI"):
        X86Int8.check(torch.float32)


@needs_vnni
def test_uncalibrated_timesteps_read_the_artifact_once(program: Program, interpreted: list[Any]) -> None:
    options = LoweringOptions(digest="a", dtype=torch.float32)
    lowered = X86Int8.lower(copy_of(program), options)
    read: list[Program] = []
    kept = X86Int8.kept(options, lambda: read.append(copy_of(program)) or read[-1])  # type: ignore[func-returns-value]
    assert kept is not None
    outputs(kept.lowered, TIMESTEPS.tolist())
    assert read == []
    unseen = (333, 20, 12.5)
    assert torch.equal(outputs(kept.lowered, unseen), outputs(lowered, unseen))
    assert len(read) == 1


@needs_vnni
def test_fractional_calibrated_timesteps_are_kept(model: TracedModel, interpreted: list[Any]) -> None:
    """Euler's are; the graph takes them as they are, though it was traced with integers."""
    program = grouped(model, (W8, BY_TIMESTEP))
    program.timesteps = torch.tensor([946.4211, 500.25, 99.5])
    converted(program)
    options = LoweringOptions(digest="a", dtype=torch.float32)
    X86Int8.lower(copy_of(program), options)
    kept = X86Int8.kept(options, no_reload)
    assert kept is not None
    outputs(kept.lowered, program.timesteps.tolist())


@needs_vnni
def test_program_that_was_not_calibrated(model: TracedModel, interpreted: list[Any]) -> None:
    """Weights alone: no timestep is known beforehand, and the body still has a time part."""
    program = grouped(model, (W4, None))
    program.timesteps = torch.empty(0)
    converted(program)
    options = LoweringOptions(digest="a", dtype=torch.float32)
    lowered = X86Int8.lower(copy_of(program), options)
    assert error(outputs(lowered), outputs(program.graph_module)) < 1e-4
    kept = X86Int8.kept(options, lambda: copy_of(program))
    assert kept is not None
    assert torch.equal(outputs(kept.lowered), outputs(lowered))


@needs_vnni
def test_compiler_that_fails(program: Program, packages: PackageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> str:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(BackendError, match="cannot be compiled: RuntimeError: no C") as refused:
        X86Int8.lower(copy_of(program), LoweringOptions(digest="a"))
    assert "--no-compile" in refused.value.hint
    assert list(packages.root.iterdir()) == []
