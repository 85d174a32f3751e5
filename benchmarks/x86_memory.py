"""Peak memory of a denoiser's calls in full precision and by a backend, each in a process of its own.

    python benchmarks/x86_memory.py --artifact out/sd15 --model path/to/unet

Prints a table: the most memory that was resident from the start to the last call, and while the calls ran alone.
Linux only. The full-precision model is best read from float32 files: what is cast while it is read counts as well.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VARIANTS = ("imports", "fp32", "x86_int8 --no-compile", "x86_int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--model", required=True, help="the full-precision model that the artifact was compiled from")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.artifact, given.model, given.batch, given.calls)))
        return
    print("| variant | peak MB | of fp32 | while calling MB | of fp32 | load s | call s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    fp32: dict[str, float] = {}
    for variant in given.variants:
        found = run(variant, sys.argv[1:])
        fp32 = found if variant == "fp32" else fp32
        print(f"| {variant} | {' | '.join(cells(found, fp32))} |", flush=True)


def run(variant: str, arguments: list[str]) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--one", variant]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def cells(found: dict[str, float], fp32: dict[str, float]) -> list[str]:
    """Megabytes and their share of full precision's, then seconds."""
    texts = []
    for key in ("peak", "calls"):
        share = f"{found[key] / fp32[key]:.2f}" if fp32 else "-"
        texts += [f"{found[key]:.0f}", share]
    return [*texts, f"{found['load_seconds']:.1f}", f"{found['call_seconds']:.2f}"]


def measure(variant: str, artifact: str, model: str, batch: int, calls: int) -> dict[str, float]:
    """Megabytes and seconds of one variant, in this process; seconds are CPU time, the median of the calls."""
    from dmq_fx.artifact.opened import open_artifact
    from dmq_fx.bench import noise_inputs

    started = time.process_time()
    opened = open_artifact(Path(artifact))
    inputs = noise_inputs(opened, batch)
    denoiser = load(variant, artifact, model)
    loaded = time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is that of the calls
    before = peak()
    seconds = []
    for _ in range(calls):
        begun = time.process_time()
        with torch.no_grad():
            denoiser(**inputs)
        seconds.append(time.process_time() - begun)
    return {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "calls": max(before, peak()),
        "load_seconds": loaded - started,
        "call_seconds": statistics.median(seconds),
    }


def load(variant: str, artifact: str, model: str) -> Callable[..., Any]:
    import dmq_fx as dmq
    from dmq_fx.models import load_model

    if variant == "imports":
        return lambda **inputs: None
    if variant == "fp32":
        return load_model(model).denoiser
    return dmq.load(artifact, backend="x86_int8", compile="--no-compile" not in variant)


def peak() -> float:
    """The most memory that was resident since the mark was last reset, in megabytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


if __name__ == "__main__":
    main()
