"""What each rewrite of the x86_int8 lowering brings: a denoiser compiled without it, beside the whole, in one process.

    python benchmarks/x86_rewrites.py out/x86/ddpm-cifar10-*/dmq-* --batch 4 --threads 1

Takes artifacts (`dmq compile`, or those that benchmarks/x86_unet.py leaves). Variants are compiled first, a minute or
two each, and then called in turn, round by round, in a random order; a turn begins with a call that is not timed. The
last column is the median, over the rounds, of a variant's time by that of the whole lowering in the same round. Take
no numbers from a machine that does other things.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import Opened, open_artifact
from dmq_fx.backends.x86_int8 import default_dtype
from dmq_fx.lowering import native
from dmq_fx.lowering.rewrite import rewrite
from dmq_fx.lowering.time_part import TimePart
from dmq_fx.program import Program


@dataclass(frozen=True)
class Variant:
    """A lowering: which rewrites are made. keep_times: what depends on the timestep alone is not computed in a call."""

    name: str
    bfloat16: bool
    attention: bool
    join: bool = True
    fuse: bool = True
    group_norms: bool = True
    many_reads: bool = True
    keep_times: bool = True


FAST_BFLOAT16 = default_dtype() == torch.bfloat16
WHOLE = Variant(f"whole, {'bfloat16' if FAST_BFLOAT16 else 'float32'} between kernels", FAST_BFLOAT16, FAST_BFLOAT16)
OF_BFLOAT16 = (
    Variant("float32 between kernels", bfloat16=False, attention=False),
    replace(WHOLE, name="torch's fused attention", attention=False),
)
VARIANTS = (
    WHOLE,
    *(OF_BFLOAT16 if FAST_BFLOAT16 else ()),
    replace(WHOLE, name="products of one value apart", join=False),
    replace(WHOLE, name="norms by Inductor", fuse=False),
    replace(WHOLE, name="norms by Inductor, reduced as it does", fuse=False, group_norms=False),
    replace(WHOLE, name="norms by Inductor, its limit of reads", fuse=False, many_reads=False),
    replace(WHOLE, name="time embedding in every call", keep_times=False),
)
"""The whole is what the backend does on this CPU, as `dmq_fx.lowering.rewrite` has it."""


def lowered(program: Program, variant: Variant) -> TimePart:
    """The program's graph in two parts, with the rewrites of a variant."""
    dtype = torch.bfloat16 if variant.bfloat16 else torch.float32
    made = {name: getattr(variant, name) for name in ("join", "fuse", "group_norms", "attention")}
    return rewrite(program, dtype, **made)


def in_time(program: Program, parts: TimePart) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """What the time part gives for the timestep of the first sample."""
    time_part, position = parts.time, program.timestep_position
    if time_part is None or position is None:
        raise SystemExit("this model has no timestep to split off")
    return lambda inputs: time_part(inputs[position][:1])


def compiled(opened: Opened, variant: Variant, folder: Path, batch: int) -> Callable[[], Any]:
    """A call of a variant's native code on noise, at the sampler's second timestep."""
    program, _ = load_program(opened)
    parts = lowered(program, variant)
    settings = dict(native.SETTINGS)
    if not variant.many_reads:
        settings.pop("realize_reads_threshold")
    of_timestep, example = in_time(program, parts), native.example_inputs(program.traced)
    native.write_package(folder, parts.body, program.traced, of_timestep(example), {}, settings)
    code, _, _ = native.load_package(folder)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(batch, *x.shape[1:], generator=generator).to(x) if entry.batched else x
        for x, entry in zip(example, program.traced.inputs, strict=True)
    ]
    inputs[program.timestep_position or 0].fill_(opened.report["timesteps"][1])
    given = of_timestep(inputs)
    if variant.keep_times:
        return lambda: code(*inputs, *given)
    return lambda: code(*inputs, *of_timestep(inputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    opened = open_artifact(args.artifact)
    seconds: dict[Variant, list[list[float]]] = {variant: [] for variant in VARIANTS}
    with torch.no_grad(), tempfile.TemporaryDirectory() as root:
        calls = {}
        for number, variant in enumerate(VARIANTS):
            folder = Path(root) / str(number)
            folder.mkdir()
            calls[variant] = compiled(opened, variant, folder, args.batch)
            print(f"ready: {variant.name}", flush=True)
        order = random.Random(0)
        for _ in range(args.rounds):
            for variant in order.sample(VARIANTS, len(VARIANTS)):
                calls[variant]()
                seconds[variant].append([timed(calls[variant]) for _ in range(args.calls)])
    print(f"\nbatch {args.batch}, {args.threads} threads, {args.rounds} rounds of {args.calls} calls\n")
    print("| lowering | ms | by the whole |\n| --- | --- | --- |")
    for variant in VARIANTS:
        times = seconds[variant]
        ratio = median(median(own) / median(whole) for own, whole in zip(times, seconds[WHOLE], strict=True))
        label = variant.name
        print(f"| {label} | {1e3 * median(t for calls in times for t in calls):.1f} | {ratio:.2f} |")


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
