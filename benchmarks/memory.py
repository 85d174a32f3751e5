"""Does the peak memory of a compile depend on the number of calibration samples?

    python benchmarks/memory.py --output out/memory

Compiles one recipe with 64 and with 1,024 samples, each in a process of its own and with an empty cache, and prints the
peaks that the operating system counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from baselines import compile_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:ddpm-mnist")
    parser.add_argument("--recipe", default="dmq/w4a8")
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--steps", type=int, default=4, help="sampler steps of the calibration")
    parser.add_argument("--set", dest="overrides", nargs="+", default=["budget=quick"], help="further overrides")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    print("| samples | rows | peak MB | compile s |")
    print("| --- | --- | --- | --- |")
    peaks = []
    for samples in args.samples:
        overrides = (f"calibration.samples={samples}", f"calibration.steps={args.steps}", *args.overrides)
        output = args.output / str(samples)
        found = compile_recipe(args.recipe, args.model, output, cold=True, overrides=overrides)
        peaks.append(found["peak_megabytes"])
        print(f"| {samples} | {samples * args.steps} | {peaks[-1]:.0f} | {found['seconds']:.0f} |", flush=True)
    print(f"\nlargest over smallest peak: {max(peaks) / min(peaks):.3f}")


if __name__ == "__main__":
    main()
