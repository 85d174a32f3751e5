"""The library's recipes on an embedded model: sizes, errors, time and memory of a compile, and a picture.

    python benchmarks/baselines.py --output out/baselines --figure docs/images/baselines.png

Prints the tables of docs/results.md. Every recipe is compiled by the `dmq` command in a process of its own, whose peak
memory is read from the operating system; all of them run before this process loads torch, as a child's peak counts from
its parent's size. The first compile samples the calibration inputs, later ones find them in the cache (`--cold` gives
every recipe an empty one). Compiles whose artifact is there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RECIPES = ("ptq/w8a8", "ptq/w6a6", "ptq/w4a8", "ptq/w4a6", "weight-only/w8", "weight-only/w4")
SHOWN = ("ptq/w8a8", "ptq/w4a6")


def compile_recipe(recipe: str, model: str, output: Path, *, cold: bool, overrides: Sequence[str] = ()) -> dict:
    """Run `dmq compile` and return what it printed, with its peak memory in MB."""
    record = output.with_suffix(".json")
    asked = {"recipe": recipe, "model": model, "overrides": list(overrides)}
    if record.exists() and output.exists():
        kept = json.loads(record.read_text())
        if {key: kept.get(key) for key in asked} == asked:
            return kept
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as empty:
        if cold:
            environment["XDG_CACHE_HOME"] = empty
        command = [sys.executable, "-m", "dmq_fx.cli", "compile", recipe, "--model", model, "-o", str(output)]
        command += [part for override in overrides for part in ("--set", override)]
        process = subprocess.Popen([*command, "--force", "--json"], stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"dmq compile {recipe} failed with status {status}")
    found = json.loads(printed) | asked | {"peak_megabytes": usage.ru_maxrss / 1000}
    record.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:ddpm-mnist")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--output", type=Path, required=True, help="folder that artifacts are kept in")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--figure", type=Path, help="picture of full precision and some recipes, same noise")
    parser.add_argument("--shown", nargs="+", default=list(SHOWN), help="recipes in the picture")
    parser.add_argument("--cold", action="store_true", help="an empty calibration cache for every recipe")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    made = {name: compile_recipe(name, args.model, artifact(args, name), cold=args.cold) for name in args.recipes}
    report(args, made)


def artifact(args: argparse.Namespace, recipe: str) -> Path:
    return args.output / recipe.replace("/", "-")


def draw_grids(figure: Path, artifacts: dict[str, Path], *, steps: int, seed: int, device: str = "cpu") -> None:
    """25 images of full precision and of every artifact, from the same noise, side by side under their names."""
    from dmq_fx.images import save_grids
    from dmq_fx.pair import open_pair, sample
    from dmq_fx.sampling import Sampler, SamplerOptions

    options = SamplerOptions(steps=steps, batch=25, seed=seed)
    panels = []
    for name, folder in artifacts.items():
        pair = open_pair(folder, device=device)
        if not panels:
            panels.append(("full precision", next(Sampler(pair.reference, options).run(25))))
        panels.append((name, sample(pair, 25, options, lambda what, done, total: None)))
    figure.parent.mkdir(parents=True, exist_ok=True)
    save_grids(figure, panels)


def report(args: argparse.Namespace, made: dict[str, dict]) -> None:
    """Evaluate the compiled artifacts and print the table."""
    from dmq_fx.images import save_grids
    from dmq_fx.metrics import compare
    from dmq_fx.pair import open_pair
    from dmq_fx.sampling import SamplerOptions

    panels = {}
    print(
        f"`{args.model}`, {args.samples} samples of 20 steps, seed 0; full precision beside it from the same noise.\n"
    )
    print(
        "| recipe | weight bits | artifact MB | GBOPs | mean state MSE | final MSE | final PSNR dB | compile s | MB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for recipe in args.recipes:
        pair = open_pair(artifact(args, recipe))
        options = SamplerOptions(steps=20, batch=32)
        found, exact, approximate = compare(pair.reference, pair.quantized, options, args.samples)
        panels["full precision"] = exact[:36]
        panels[recipe] = approximate[:36]
        mean = sum(found.trajectory_mse) / len(found.trajectory_mse)
        psnr = "equal" if found.final_psnr is None else f"{found.final_psnr:.2f}"
        print(
            f"| {recipe} | {made[recipe]['mean_weight_bits']:.2f} | {made[recipe]['bytes'] / 1e6:.2f} "
            f"| {pair.opened.report['totals']['bops'] / 1e9:.1f} | {mean:.2e} | {found.final_mse:.2e} | {psnr} "
            f"| {made[recipe]['seconds']:.0f} | {made[recipe]['peak_megabytes']:.0f} |",
            flush=True,
        )
    if args.figure:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        save_grids(args.figure, [(name, panels[name]) for name in ("full precision", *args.shown)])


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(
        f"\n{time.perf_counter() - started:.0f} s in all, peak memory of the evaluation "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB",
        file=sys.stderr,
    )
