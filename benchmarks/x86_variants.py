"""What benchmarks/x86_unet.py calls: the same module as torch, torch.compile, OpenVINO, NNCF and dmq run it."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from dmq_fx import compile as compile_artifact
from dmq_fx import load
from dmq_fx.calibration.store import CalibrationCache, CalibrationSet
from dmq_fx.compiler import resolve_recipe
from dmq_fx.models import LoadedModel

CALIBRATION = "calibration"

Inputs = tuple[Tensor, ...]
Forward = Callable[[Inputs], Tensor]
Build = Callable[["Bench", list[Inputs]], "Ready"]


class Positional(nn.Module):
    """A denoiser that takes its tensors by position and returns one."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.denoiser(*inputs, return_dict=False)[0]


@dataclass(frozen=True)
class Bench:
    """The model that all variants are made of.

    folder: what is made of this model. recipe: as the command line names it, with its overrides. names: of the tensors
    of a call, in order. calibration: what NNCF and dmq calibrate on. held_out: other inputs.
    """

    loaded: LoadedModel
    folder: Path
    threads: int
    recipe: str
    overrides: tuple[str, ...]
    names: tuple[str, ...]
    calibration: CalibrationSet
    held_out: CalibrationSet

    @property
    def denoiser(self) -> nn.Module:
        return self.loaded.denoiser

    def timesteps(self, count: int) -> list[float]:
        """So many of the sampler's timesteps, the first and the last among them."""
        return [self.held_out.timesteps[index] for index in self._steps(count)]

    def inputs(self, batch: int, timesteps: int) -> list[Inputs]:
        """Inputs of `batch` samples at so many of the sampler's timesteps."""
        steps = self.held_out.batch(0)
        return [tuple(steps[index][name][:batch].clone() for name in self.names) for index in self._steps(timesteps)]

    def _steps(self, count: int) -> list[int]:
        last = self.held_out.steps - 1
        return torch.linspace(0, last, min(count, last + 1)).round().int().tolist()


@dataclass(frozen=True)
class Ready:
    """A variant that can be called. layers: how many run in which type, where the runtime tells."""

    forward: Forward
    layers: str = ""


def eager(bench: Bench, inputs: list[Inputs]) -> Ready:
    module = Positional(bench.denoiser)
    return Ready(lambda call: module(*call))


def compiled(bench: Bench, inputs: list[Inputs], *, dtype: torch.dtype, freezing: bool) -> Ready:
    """torch.compile for this batch size; compiled here, as inductor reads whether to freeze while it compiles."""
    module = Positional(copy.deepcopy(bench.denoiser)).to(dtype=dtype, memory_format=torch.channels_last)
    run = torch.compile(module, dynamic=False)

    def forward(call: Inputs) -> Tensor:
        return run(*(x.to(dtype) if x.is_floating_point() else x for x in call)).float()

    with inductor_config.patch(freezing=True) if freezing else nullcontext():
        forward(inputs[0])
    return Ready(forward)


def openvino(bench: Bench, inputs: list[Inputs], *, precision: str, source: Callable[[Bench], Path]) -> Ready:
    """An OpenVINO model of exactly these shapes, for latency. precision: of what is not quantized."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(source(bench))
    model.reshape({index: list(tensor.shape) for index, tensor in enumerate(inputs[0])})
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": bench.threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    run = core.compile_model(model, "CPU", options)

    def forward(call: Inputs) -> Tensor:
        return torch.from_numpy(run([x.numpy() for x in call], share_inputs=True, share_outputs=True)[0])

    return Ready(forward, layer_types(run.get_runtime_model()))


def layer_types(model: Any) -> str:
    """How many convolutions, matrix products and attentions of a compiled OpenVINO model run in which type."""
    counts: Counter[str] = Counter()
    for node in model.get_ordered_ops():
        names = ("layerType", "originalLayersNames", "runtimePrecision")
        kind, origin, precision = (node.get_rt_info()[name].astype(str) for name in names)
        if kind in ("Convolution", "FullyConnected", "MatMul") or "ScaledDotProductAttention" in origin:
            counts["int8" if precision in ("i8", "u8") else precision] += 1
    return ", ".join(f"{count} {precision}" for precision, count in counts.most_common())


def openvino_float(bench: Bench) -> Path:
    """The module as OpenVINO's model, of any batch."""
    import openvino as ov

    example = bench.inputs(1, 1)[0]
    folder = bench.folder / f"openvino-{version('openvino')}-fp32"
    return kept(folder, lambda: ov.convert_model(Positional(bench.denoiser), example_input=example))


def openvino_int8(bench: Bench) -> Path:
    """That model quantized after training by NNCF: its settings for models with attention, one sample a call."""
    import nncf
    import openvino as ov

    def quantize() -> ov.Model:
        model = ov.Core().read_model(openvino_float(bench))
        model.reshape({index: list(tensor.shape) for index, tensor in enumerate(bench.inputs(1, 1)[0])})
        rows = [
            tuple(step[name][row : row + 1].numpy() for name in bench.names)
            for _, _, step in bench.calibration
            for row in range(len(step["sample"]))
        ]
        return nncf.quantize(model, nncf.Dataset(rows), subset_size=len(rows), model_type=nncf.ModelType.TRANSFORMER)

    return kept(bench.folder / f"nncf-{version('nncf')}-{bench.calibration.path.name[:12]}", quantize)


def kept(folder: Path, make: Callable[[], Any]) -> Path:
    """The file of an OpenVINO model in `folder`, made if it is not there."""
    import openvino as ov

    if not folder.exists():
        unfinished = folder.with_name(folder.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        ov.save_model(make(), unfinished / "model.xml", compress_to_fp16=False)
        unfinished.rename(folder)
    return folder / "model.xml"


def quantized(bench: Bench, inputs: list[Inputs], *, backend: str) -> Ready:
    """dmq's artifact of this module, lowered to a backend."""
    digest = resolve_recipe(bench.recipe, bench.overrides).digest
    artifact = bench.folder / f"dmq-{version('dmq-fx')}-{digest[:12]}"
    with torch.enable_grad():  # a recipe may learn
        if not artifact.exists():
            compile_artifact(
                bench.recipe,
                model=bench.loaded.pipeline,
                output=artifact,
                overrides=bench.overrides,
                cache=CalibrationCache(bench.folder / CALIBRATION),
            )
        module = Positional(load(artifact, backend=backend, model=bench.denoiser))
    return Ready(lambda call: module(*call))


@dataclass(frozen=True)
class Variant:
    """label: its name in the table. build: makes it for the shapes of the inputs."""

    label: str
    build: Build


VARIANTS = {
    "eager": Variant("eager fp32", eager),
    "compiled": Variant("compiled fp32", partial(compiled, dtype=torch.float32, freezing=False)),
    "compiled-bf16": Variant("compiled bf16", partial(compiled, dtype=torch.bfloat16, freezing=True)),
    "openvino": Variant("OpenVINO fp32", partial(openvino, precision="f32", source=openvino_float)),
    "openvino-bf16": Variant("OpenVINO bf16", partial(openvino, precision="bf16", source=openvino_float)),
    "nncf": Variant("OpenVINO + NNCF int8, rest fp32", partial(openvino, precision="f32", source=openvino_int8)),
    "nncf-bf16": Variant("OpenVINO + NNCF int8, rest bf16", partial(openvino, precision="bf16", source=openvino_int8)),
    "x86_int8": Variant("dmq x86_int8", partial(quantized, backend="x86_int8")),
    "fake_quant": Variant("dmq fake_quant", partial(quantized, backend="fake_quant")),
}
OPENVINO_INT8 = ("nncf", "nncf-bf16")
