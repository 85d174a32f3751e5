"""DMQ and what it is compared with, on one model: errors, time and memory of every recipe, and errors by timestep.

    python benchmarks/dmq.py --output out/dmq --figure docs/images/dmq-trajectory.png
    python benchmarks/dmq.py --output out/dmq-outliers --model out/planted ...

Prints the tables of docs/results.md. Noise is that of `--seed`, which no calibration has seen: the recipes' own begins
at 0. Compiles run in processes of their own (`benchmarks/baselines.py`) and are kept: adding a recipe costs one row.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from baselines import artifact, compile_recipe, draw_grids

RECIPES = {
    8: (
        "dmq/ablation/naive-w4a8",
        "dmq/ablation/gptq-w4a8",
        "dmq/ablation/base-w4a8",
        "dmq/ablation/les-w4a8",
        "dmq/ablation/les-weighted-w4a8",
        "dmq/ablation/les-weighted-pts-w4a8",
        "dmq/w4a8",
    ),
    6: (
        "dmq/ablation/naive-w4a6",
        "dmq/ablation/gptq-w4a6",
        "dmq/ablation/base-w4a6",
        "dmq/ablation/les-w4a6",
        "dmq/ablation/les-weighted-w4a6",
        "dmq/ablation/les-weighted-pts-w4a6",
        "dmq/w4a6",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:ddpm-mnist")
    parser.add_argument("--recipes", nargs="+", default=[*RECIPES[8], *RECIPES[6]])
    parser.add_argument("--budget", default="quick", choices=("quick", "standard", "full"))
    parser.add_argument("--output", type=Path, required=True, help="folder that artifacts are kept in")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seed", type=int, nargs="+", default=[10_000, 20_000], help="first image of each evaluation")
    parser.add_argument("--figure", type=Path, help="errors by timestep")
    parser.add_argument("--grids", type=Path, help="25 images of full precision and of every recipe, same noise")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    overrides = (f"budget={args.budget}",)
    made = {}
    for name in args.recipes:
        made[name] = compile_recipe(name, args.model, artifact(args, name), cold=False, overrides=overrides)
    found = {name: evaluate(args, name) for name in args.recipes}
    report(args, made, found)
    if args.figure:
        draw(args, found)
    if args.grids:
        draw_grids(args.grids, {name: artifact(args, name) for name in args.recipes}, steps=20, seed=args.seed[0])


def evaluate(args: argparse.Namespace, recipe: str) -> list[dict]:
    """What `dmq eval --json` prints of an artifact, for each seed; kept beside it."""
    record = artifact(args, recipe).with_suffix(".eval.json")
    known = json.loads(record.read_text()) if record.exists() else {}
    digest = json.loads((artifact(args, recipe) / "manifest.json").read_text())["digest"]
    if known.get("digest") != digest:
        known = {"digest": digest}
    for seed in args.seed:
        key = f"{args.samples}@{seed}"
        if "corrected_mse" not in known.get(key, {}):
            from mean_shift import full_precision, take_off_means

            from dmq_fx.metrics import compare
            from dmq_fx.pair import open_pair, sample
            from dmq_fx.sampling import SamplerOptions

            options = SamplerOptions(steps=20, batch=32, seed=seed)
            pair = open_pair(artifact(args, recipe))
            result, exact, _ = compare(pair.reference, pair.quantized, options, args.samples)
            take_off_means(pair.quantized, full_precision(pair.reference, SamplerOptions(steps=20, batch=32, seed=0)))
            corrected = sample(pair, args.samples, options, lambda what, done, total: None)
            known[key] = {
                "trajectory_mse": list(result.trajectory_mse),
                "final_mse": result.final_mse,
                "corrected_mse": float((corrected - exact).square().mean()),
                "timesteps": pair.opened.report["timesteps"],
            }
            record.write_text(json.dumps(known))
    return [known[f"{args.samples}@{seed}"] for seed in args.seed]


def report(args: argparse.Namespace, made: dict[str, dict], found: dict[str, list[dict]]) -> None:
    seeds = ", ".join(map(str, args.seed))
    print(f"`{args.model}`, budget {args.budget}, {args.samples} samples of 20 steps from each of the seeds {seeds}.\n")
    print("| recipe | mean state MSE | final MSE | by seed | without shift | artifact MB | compile s | peak MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, results in found.items():
        states = [sum(r["trajectory_mse"]) / len(r["trajectory_mse"]) for r in results]
        finals = [r["final_mse"] for r in results]
        print(
            f"| {name} | {sum(states) / len(states):.2e} | {sum(finals) / len(finals):.2e} "
            f"| {', '.join(f'{value:.2e}' for value in finals)} "
            f"| {sum(r['corrected_mse'] for r in results) / len(results):.2e} | {made[name]['bytes'] / 1e6:.2f} "
            f"| {made[name]['seconds']:.0f} | {made[name]['peak_megabytes']:.0f} |"
        )


def draw(args: argparse.Namespace, found: dict[str, list[dict]]) -> None:
    """Mean squared error of the sampler's state at every step, a line a recipe, W4A8 and W4A6 side by side."""
    from dmq_fx.inspection.figures import Curve, Panel
    from dmq_fx.inspection.figures import draw as draw_panels

    panels = []
    for bits, recipes in RECIPES.items():
        lines = []
        for name in (name for name in recipes if name in found):
            curves = [result["trajectory_mse"] for result in found[name]]
            mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
            lines.append(Curve(name, range(1, len(mean) + 1), mean))
        title = f"4-bit weights, {bits}-bit activations"
        panels.append(Panel(title, "sampler step", "mean squared error of the state", tuple(lines), logarithmic=True))
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    draw_panels(panels, share_y=True).savefig(args.figure, dpi=110)


if __name__ == "__main__":
    main()
