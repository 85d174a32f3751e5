"""Time of one denoiser forward on an x86 CPU: eager, torch.compile, OpenVINO, NNCF's int8 and dmq's, in one process.

    python benchmarks/x86_unet.py --model ddpm-cifar10 --batch 1,4 --error --output out/x86 --json out/x86/cifar10.json

Needs `pip install openvino nncf` beside dmq, and Linux. All variants are made of the same module and called in turn,
round by round, in a random order; ratios are medians of the ratios within a round. A turn begins with a call that is
not timed: it pays for the caches that the variant before has filled. A variant that cannot be made or run has its error
in the table.

Take no numbers from a machine that does other things, and the line above the table says what it did: torch's OpenMP
threads wait for each other after every layer, so that one more busy process costs torch's variants far more than
OpenVINO's (measured: 30 times the time of an eager forward).

Inputs are those of the model's own sampler at several of its timesteps. A model with random weights would drive a
sampler's state away, so that it gets noise of unit variance at every timestep in its place. dmq's ranges and NNCF's
come from the same inputs (`--samples`), errors from others. dmq's x86_int8 keeps what depends on the timestep alone for
timesteps that come back, as they do in a sampler: every timestep is called once before the timing.

Artifacts and OpenVINO's models are kept in the output folder, by the digest of the weights: a rerun makes none of them
again. Models with random weights are built from the published configurations under tests/architectures.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from dmq_fx import compile as compile_artifact
from dmq_fx import load
from dmq_fx.calibration.capture import calibration_set
from dmq_fx.calibration.store import CalibrationCache, CalibrationSet
from dmq_fx.compiler import resolve_recipe
from dmq_fx.models import LoadedModel, example_inputs, fingerprint, load_model
from dmq_fx.models.build import denoiser_class
from dmq_fx.recipe.language import Calibration
from dmq_fx.tracing import repeat_inputs, trace

CONFIGS = Path(__file__).resolve().parents[1] / "tests" / "architectures" / "configs"
EMBEDDED = {"embedded": "builtin:ddpm-mnist"}
RANDOM = {"ddpm-cifar10": "ddpm-cifar10.json", "ldm-4": "ldm-celebahq-256.json", "sd15": "sd15.json"}
HELD_OUT = 10_000
"""Seed of the first image whose inputs are timed and compared; calibration begins at the recipe's own seed."""
PACKAGES = ("dmq-fx", "torch", "diffusers", "openvino", "nncf")
CALIBRATION = "calibration"
CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")

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


class NoisePipeline(DiffusionPipeline):
    """A sampler that gives the denoiser noise of unit variance at every timestep, whatever the denoiser answers."""

    def __init__(self, unet: nn.Module, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.example = example_inputs(unet, 1)

    def __call__(
        self, batch_size: int, num_inference_steps: int, generator: Sequence[torch.Generator], **_: Any
    ) -> tuple[Tensor]:
        inputs = repeat_inputs(self.example, batch_size)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            inputs["sample"] = torch.stack([torch.randn(inputs["sample"].shape[1:], generator=g) for g in generator])
            inputs["timestep"] = t.expand(batch_size)
            sample = self.unet(**inputs, return_dict=False)[0]
        return (sample,)


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


@dataclass
class Row:
    """What was found of a variant at one batch size.

    seconds: of every call, by round. errors: relative L2 error by timestep. failure: why there is nothing else.
    """

    variant: str
    batch: int
    prepared_seconds: float = 0.0
    layers: str = ""
    seconds: list[list[float]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def rounds(self) -> list[float]:
        """Median of each round, in seconds."""
        return [median(calls) for calls in self.seconds]

    def speed_over(self, other: Row | None) -> str:
        """How many times as fast, as the median over the rounds; empty where either was not timed."""
        if other is None or not self.seconds or not other.seconds:
            return ""
        return f"{median(theirs / own for own, theirs in zip(self.rounds, other.rounds, strict=True)):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", choices=(*EMBEDDED, *RANDOM))
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(VARIANTS),
        choices=VARIANTS,
        metavar="VARIANT",
        help=f"in the order of the table: {', '.join(VARIANTS)}; all of them if left out",
    )
    parser.add_argument("--batch", default="1,4", help="batch sizes, separated by commas")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=3, help="timed calls of a variant in a round")
    parser.add_argument("--timesteps", type=int, default=4, help="timesteps that inputs are taken at")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--recipe", default="ptq/w8a8", help="of the library, or a file")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], help="overrides of the recipe")
    parser.add_argument("--samples", type=int, default=4, help="images whose inputs NNCF and dmq calibrate on")
    parser.add_argument("--error", action="store_true", help="relative L2 error of the outputs against eager fp32")
    parser.add_argument("--output", type=Path, required=True, help="folder of artifacts and OpenVINO's models")
    parser.add_argument("--json", type=Path, help="every call's seconds and the errors")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    bench = open_bench(args)
    rows: list[Row] = []
    others: dict[int, float] = {}
    for batch in map(int, args.batch.split(",")):
        found, others[batch] = measure(bench, args, batch)
        rows += found
    about = describe(args, bench) | {"others": others, "timesteps": bench.timesteps(args.timesteps)}
    print_table(args, bench, rows, about)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        args.json.write_text(json.dumps({**about, "options": options, "rows": [vars(row) for row in rows]}, indent=1))


def open_bench(args: argparse.Namespace) -> Bench:
    """Load or build the model and sample the inputs, or read those that an earlier run has sampled."""
    loaded = load_model(EMBEDDED[args.model]) if args.model in EMBEDDED else random_model(args.model)
    identity = fingerprint(loaded.denoiser)
    folder = args.output / f"{args.model}-{identity[:12]}"
    overrides = (f"calibration.samples={args.samples}", f"calibration.batch={min(args.samples, 16)}", *args.overrides)
    calibration = resolve_recipe(args.recipe, overrides).recipe.calibration
    largest = max(map(int, args.batch.split(",")))
    held_out = replace(calibration, samples=largest, batch=largest, seed=HELD_OUT)
    traced = trace(loaded.denoiser)

    def inputs_of(wanted: Calibration) -> CalibrationSet:
        cache = CalibrationCache(folder / CALIBRATION)
        return calibration_set(loaded, traced, wanted, identity=identity, cache=cache, progress=show)

    sets = inputs_of(calibration), inputs_of(held_out)
    return Bench(loaded, folder, args.threads, args.recipe, overrides, traced.input_paths, *sets)


def random_model(name: str) -> LoadedModel:
    """A denoiser of a published configuration with diffusers' initial weights, always the same ones."""
    config = json.loads((CONFIGS / RANDOM[name]).read_text())
    cls = denoiser_class(config.pop("_class_name"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = cls.from_config(config)
    return load_model(NoisePipeline(denoiser.eval().requires_grad_(False), DDPMScheduler()))


def measure(bench: Bench, args: argparse.Namespace, batch: int) -> tuple[list[Row], float]:
    """Make every variant for this batch size, compare its outputs, and time all of them in turn.

    Returns their rows, and the part of the processor that other processes took meanwhile.
    """
    inputs = bench.inputs(batch, args.timesteps)
    exact = [eager(bench, inputs).forward(call) for call in inputs] if args.error else None
    rows = [Row(key, batch) for key in args.variants]
    made = [(row, prepare(bench, row, inputs, exact)) for row in rows]
    ready = [(row, forward) for row, forward in made if forward is not None]
    wall, busy = time.perf_counter(), busy_elsewhere()
    for number in range(args.rounds):
        for row, forward in random.Random(number).sample(ready, len(ready)):
            row.seconds.append(turn(forward, inputs[number % len(inputs)], args.calls))
        show(f"batch {batch}: round", number + 1, args.rounds)
    elsewhere = (busy_elsewhere() - busy) / (time.perf_counter() - wall) / (os.cpu_count() or 1)
    del made, ready
    torch.compiler.reset()
    gc.collect()
    return rows, max(0.0, elsewhere)


def busy_elsewhere() -> float:
    """Seconds of all processors since the start of the machine that were neither idle nor this process's."""
    ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _waiting, *interrupts_and_stolen = ticks
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def prepare(bench: Bench, row: Row, inputs: list[Inputs], exact: list[Tensor] | None) -> Forward | None:
    """Make a variant and call it with every input; None if it fails, which is noted in its row."""
    started = time.perf_counter()
    label = VARIANTS[row.variant].label
    try:
        ready = VARIANTS[row.variant].build(bench, inputs)
        for number, call in enumerate(inputs):
            output = ready.forward(call)
            if exact is not None:
                row.errors.append(float((output - exact[number]).norm() / exact[number].norm()))
    except Exception as error:  # of four compilers: whatever they raise belongs in the table
        row.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(f"batch {row.batch}: {label}: {row.failure}", file=sys.stderr)
        return None
    row.layers = ready.layers
    row.prepared_seconds = time.perf_counter() - started
    print(f"batch {row.batch}: {label} ready after {row.prepared_seconds:.0f} s", file=sys.stderr)
    return ready.forward


def turn(forward: Forward, inputs: Inputs, calls: int) -> list[float]:
    """Seconds of each call, after one that is not timed."""
    forward(inputs)
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        forward(inputs)
        seconds.append(time.perf_counter() - started)
    return seconds


def describe(args: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """Model, processor and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    return {
        "model": args.model,
        "parameters": sum(parameter.numel() for parameter in bench.denoiser.parameters()),
        "fingerprint": fingerprint(bench.denoiser),
        "cpu": facts["model name"],
        "cpu_features": [flag for flag in CPU_FEATURES if flag in facts["flags"].split()],
        "threads": args.threads,
        "versions": {name: installed(name) for name in PACKAGES},
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def print_table(args: argparse.Namespace, bench: Bench, rows: list[Row], about: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    busy = ", ".join(f"{share:.0%} at batch {batch}" for batch, share in about["others"].items())
    print(
        f"\n`{about['model']}`, {about['parameters'] / 1e6:.1f} M parameters; {about['cpu']} "
        f"({' '.join(about['cpu_features'])}), {about['threads']} threads; {versions}. Medians of {args.rounds} rounds "
        f"of {args.calls} calls; recipe {' '.join([args.recipe, *args.overrides])}. Other processes took of the "
        f"processor: {busy}.\n"
    )
    timesteps = ", ".join(f"{timestep:g}" for timestep in bench.timesteps(args.timesteps))
    errors = f" relative L2 error at timestep {timesteps} |" if args.error else ""
    speeds = "speed / eager fp32 | speed / OpenVINO int8"
    print(f"| batch | variant | ms | fastest ms | {speeds} |{errors} OpenVINO's layers |")
    print("| --- " * (8 if args.error else 7) + "|")
    for row in rows:
        label = VARIANTS[row.variant].label
        if row.failure:
            print(f"| {row.batch} | {label} | {row.failure.replace('|', '/')} |{' |' * (5 if args.error else 4)}")
            continue
        peers = [other for other in rows if other.batch == row.batch and other.seconds]
        exact = next((other for other in peers if other.variant == "eager"), None)
        int8 = min((o for o in peers if o.variant in OPENVINO_INT8), key=lambda o: median(o.rounds), default=None)
        spent = f"{1000 * median(row.rounds):.1f} | {1000 * min(map(min, row.seconds)):.1f}" if row.seconds else " | "
        error = f" {', '.join(f'{value:.1e}' for value in row.errors)} |" if args.error else ""
        ratios = f"{row.speed_over(exact)} | {row.speed_over(int8)}"
        print(f"| {row.batch} | {label} | {spent} | {ratios} |{error} {row.layers} |")


def show(what: str, done: int, total: int) -> None:
    if total:
        print(f"\r{what} {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
