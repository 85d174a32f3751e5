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
import gc
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor, nn
from x86_table import Row, describe, print_table
from x86_variants import CALIBRATION, VARIANTS, Bench, Forward, Inputs, eager

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


def show(what: str, done: int, total: int) -> None:
    if total:
        print(f"\r{what} {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
