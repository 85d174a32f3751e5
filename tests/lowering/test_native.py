"""Native code of a tiny pipeline: compiled once here, run in place of the denoiser, kept for the next time."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from catalog import tiny_inputs, traced_tiny
from diffusers import DDIMPipeline
from small_programs import needs_vnni
from torch import Tensor

import dmq_fx
from dmq_fx import loading
from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.errors import BackendError
from dmq_fx.lowering.native import NativeCode, example_inputs, package_key, quiet_compiler
from dmq_fx.runtime import QuantizedDenoiser
from dmq_fx.tracing import InputError, TracedModel, bind_inputs
from dmq_fx.tracing.call import describe_call, rebuild_call

COMPILED: list[str] = []
"""What was told of progress."""


@pytest.fixture(scope="module")
def native(artifact: Path) -> QuantizedDenoiser:
    """The artifact on native code; the one compile of this file."""
    return dmq_fx.load(artifact, backend="x86_int8", progress=lambda what, done, total: COMPILED.append(what))


@pytest.fixture(scope="module")
def fake(artifact: Path) -> QuantizedDenoiser:
    return dmq_fx.load(artifact)


def compiled(test: Callable[..., None]) -> Callable[..., None]:
    """Marks what needs native code."""
    return needs_vnni(pytest.mark.slow(test))


def sample(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def output(denoiser: Any, x: Tensor, timestep: Any) -> Tensor:
    with torch.no_grad():
        return denoiser(x, timestep).sample


@compiled
@pytest.mark.parametrize("batch", [1, 2, 3, 65])
def test_agrees_with_fake_quantization(native: QuantizedDenoiser, fake: QuantizedDenoiser, batch: int) -> None:
    """For any batch by the one package, calibrated timesteps and others."""
    x = sample(batch)
    for timestep in (750, 0, 333, 12.5, torch.arange(batch) * 7):
        found, expected = output(native, x, timestep), output(fake, x, timestep)
        assert found.shape == x.shape and found.dtype == torch.float32
        assert error(found, expected) < 0.1


@compiled
def test_told_once(native: QuantizedDenoiser) -> None:
    assert COMPILED == ["compiling native code for this CPU"]


@compiled
@pytest.mark.parametrize("form", ["channels last", "every second channel", "one sample for all", "transposed"])
def test_inputs_of_any_strides(native: QuantizedDenoiser, form: str) -> None:
    """Native code takes its inputs for contiguous; what a pipeline passes need not be."""
    x = sample()
    given = {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "every second channel": torch.stack([x, -x], 2).flatten(1, 2)[:, ::2],
        "one sample for all": x[:1].expand(2, -1, -1, -1),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }[form]
    found, expected = output(native, given, 500), output(native, given.contiguous(), 500)
    assert error(found, expected) == 0


@compiled
def test_second_load_reads_no_graph(native: QuantizedDenoiser, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr(loading, "load_program", lambda *given: read.append(given) or load_program(*given))
    again = dmq_fx.load(artifact, backend="x86_int8")
    for timestep in open_artifact(artifact).report["timesteps"]:
        assert torch.equal(output(again, sample(), timestep), output(native, sample(), timestep))
    assert dict(again.config) == dict(native.config) and again.time_embedding.linear_1.in_features == 16
    with pytest.raises(InputError, match="the trace has not seen the argument 'class_labels'"):
        again(sample(), 0, class_labels=torch.tensor([1, 2]))
    assert read == []
    for timestep in (333, 12.5, 333):
        assert torch.equal(output(again, sample(), timestep), output(native, sample(), timestep))
    assert len(read) == 1


@compiled
def test_second_load_imports_no_class_of_the_denoiser(native: QuantizedDenoiser, artifact: Path) -> None:
    slow = {"diffusers.models.modeling_utils", "transformers", "torchao", "torch._inductor.lowering"}
    code = (
        "import sys; import dmq_fx; "
        f"found = dmq_fx.load({str(artifact)!r}, backend='x86_int8'); found.config.in_channels; "
        f"print(sorted({slow} & sys.modules.keys())); found.conv_in; "
        "print('diffusers.models.modeling_utils' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert said.stdout.splitlines()[-2:] == ["[]", "True"]


@compiled
def test_constants_are_read_where_they_are_mapped(native: QuantizedDenoiser, artifact: Path) -> None:
    again = dmq_fx.load(artifact, backend="x86_int8")
    code = again.lowered.run
    assert isinstance(code, NativeCode)
    before = output(again, sample(), 500)
    floats = [one for one in code.constants.values() if not one.is_mkldnn and one.is_floating_point() and one.dim()]
    assert any(one.is_mkldnn for one in code.constants.values()) and floats
    for one in floats:
        one.mul_(2)
    assert error(output(again, sample(), 500), before) > 0.1
    assert torch.equal(output(native, sample(), 500), before)


@compiled
def test_pickled_and_copied(native: QuantizedDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load_program", None)
    for other in (pickle.loads(pickle.dumps(native)), copy.deepcopy(native)):
        assert isinstance(other, QuantizedDenoiser) and other.info["backend"] == "x86_int8"
        assert torch.equal(output(other, sample(), 250), output(native, sample(), 250))


@compiled
def test_behaves_as_a_module(native: QuantizedDenoiser) -> None:
    assert native.eval() is native and native.to("cpu") is native and not native.training
    assert native.device == torch.device("cpu") and native.dtype == torch.float32
    with pytest.raises(BackendError, match="keeps the type that it was compiled with"):
        native.to(torch.bfloat16)
    with pytest.raises(BackendError, match="this lowering is for the CPU"):
        native.to("meta")
    assert native.device == torch.device("cpu")


@compiled
def test_in_a_pipeline(native: QuantizedDenoiser, pipeline_folder: Path) -> None:
    pipeline = DDIMPipeline.from_pretrained(pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for denoiser in (pipeline.unet, native):
        pipeline.unet = denoiser
        generator = [torch.Generator().manual_seed(seed) for seed in range(3)]
        images.append(pipeline(3, generator, num_inference_steps=4, output_type="np").images)
    exact, found = images
    assert exact.shape == found.shape == (3, 16, 16, 3)
    assert 0 < ((exact - found) ** 2).mean() < 1e-2


@compiled
def test_without_a_compiler(native: QuantizedDenoiser, artifact: Path) -> None:
    plain = dmq_fx.load(artifact, backend="x86_int8", compile=False)
    for timestep in (750, [333, 0]):
        given = torch.tensor(timestep)
        assert error(output(plain, sample(), given), output(native, sample(), given)) < 0.1


def test_device_that_it_does_not_run_on(artifact: Path) -> None:
    with pytest.raises(BackendError, match="x86_int8 runs on the CPU, not on cuda"):
        dmq_fx.load(artifact, backend="x86_int8", device="cuda")


def test_timesteps_of_an_artifact_with_static_ranges(
    tmp_path: Path, pipeline_folder: Path, cache: CalibrationCache, fast: tuple[str, ...]
) -> None:
    """A program that is read again knows its sampler's timesteps: a package is written with what they give."""
    overrides = (*fast, "schemes.body.activation.per_timestep=false", "schemes.boundary.activation.per_timestep=false")
    dmq_fx.compile("ptq/w8a8", model=str(pipeline_folder), output=tmp_path / "out", overrides=overrides, cache=cache)
    opened = open_artifact(tmp_path / "out")
    assert load_program(opened)[0].timesteps.tolist() == opened.report["timesteps"] == [750, 500, 250, 0]


def parameters(traced: TracedModel) -> list[tuple[str, object, object]]:
    return [(p.name, p.kind, p.default) for p in traced.signature.parameters.values()]


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_calls_are_described_in_json(name: str) -> None:
    """What a kept package says of its inputs binds calls as the trace does."""
    model = traced_tiny(name)
    said = json.loads(json.dumps(describe_call(model)))
    rebuilt = rebuild_call(said)
    assert rebuilt.inputs == model.inputs and rebuilt.constants == model.constants
    assert parameters(rebuilt) == parameters(model) and rebuilt.timestep == model.timestep
    given = tiny_inputs(name, 3)
    found, expected = bind_inputs(rebuilt, (), given), bind_inputs(model, (), given)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with pytest.raises(InputError, match="missing"):
        bind_inputs(rebuilt, (), {})


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_example_inputs(name: str) -> None:
    model = traced_tiny(name)
    for batch in (2, 5):
        for value, entry, example in zip(example_inputs(model, batch), model.inputs, model.example, strict=True):
            assert value.dtype == example.dtype and value.device.type == "cpu"
            assert value.shape == ((batch, *example.shape[1:]) if entry.batched else example.shape)


def test_key_of_a_package() -> None:
    parts: Sequence[tuple[str, str, str]] = [
        ("a", "x86_int8", "torch.bfloat16"),
        ("b", "x86_int8", "torch.bfloat16"),
        ("a", "another", "torch.bfloat16"),
        ("a", "x86_int8", "torch.float32"),
    ]
    keys = [package_key(digest, backend, dtype=dtype) for digest, backend, dtype in parts]
    assert len(set(keys)) == 4 and all(len(key) == 64 for key in keys)


def test_compiler_is_quiet_for_a_while() -> None:
    logger = logging.getLogger("torch._inductor")
    before = logger.level
    with pytest.raises(ValueError, match="inside"), quiet_compiler():
        assert logger.level == logging.ERROR
        raise ValueError("inside")
    assert logger.level == before
