"""Quality of every recipe of the library on one model: distances to real images, precision, recall, sizes, a picture.

    python benchmarks/quality.py --reference mnist.tar.xz --samples 5000 --output out/quality \
        --figure docs/images/quality.png --records benchmarks/records/quality-ddpm-mnist.json [--recipes ...]

Prints the table of docs/results.md. Artifacts and images are kept in the output folder: a run that is interrupted goes
on, and adding a recipe costs one row. Rows are kept in the records, by the digests of recipe, model and all that they
were measured with, and may be committed: those that are there are neither compiled nor measured again (but where an
artifact in the output folder is another one of the same recipe). Full precision is measured on several sets of noise:
what lies between them is no difference. Images that were kept are those of the code that sampled them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from baselines import artifact, compile_recipe, draw_grids
from rows import FULL_PRECISION, keep_row, known_row, made_of, metric_names, overrides_of, setting

SHOWN = ("ptq/w8a8", "ptq/w4a8", "dmq/w4a8", "dmq/w4a6")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--recipes", nargs="+", help="of the library; all of them if left out")
    parser.add_argument("--budget", default="quick", choices=("quick", "standard", "full"))
    parser.add_argument("--figure", type=Path, help="grids side by side, same noise")
    parser.add_argument("--shown", nargs="+", default=list(SHOWN), help="recipes in the picture")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    recipes = args.recipes or library()
    missing = [name for name in recipes if known_row(args, name) is None]
    made = {name: compile_one(args, name) for name in missing}
    rows = {FULL_PRECISION: row(args, None, {})}
    rows |= {name: row(args, name, made.get(name, {})) for name in recipes}
    report(args, rows)
    if args.figure:
        for name in args.shown:  # whose rows may have been known without an artifact
            compile_one(args, name)
        shown = {name: artifact(args, name) for name in args.shown}
        draw_grids(args.figure, shown, steps=args.steps, seed=args.seed, device=args.device)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, on which images, and where it is kept."""
    parser.add_argument("--model", default="builtin:ddpm-mnist")
    parser.add_argument("--extractor", default="mnist", help="mnist, cifar10, or inception")
    parser.add_argument("--reference", required=True, help="images that were not trained on, or stored statistics")
    parser.add_argument("--subset", default="test", help="folder inside of the reference; empty for all")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument(
        "--seed", type=int, default=100_000, help="first image; the recipes' own calibration begins at 0"
    )
    parser.add_argument("--repeats", type=int, default=2, help="sets of noise of full precision")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="images by torch.compile: half the time on a CPU")
    parser.add_argument("--backend", help="what artifacts run on, such as x86_int8; fake quantization if left out")
    parser.add_argument("--output", type=Path, required=True, help="folder of artifacts and images")
    parser.add_argument("--records", type=Path, required=True, help="scores by digest (JSON)")


def library() -> list[str]:
    """Recipes that say how something is quantized: not those that are parents only."""
    from dmq_fx.recipe.library import list_recipes

    return [recipe.name for recipe in list_recipes() if not recipe.name.endswith("/base")]


def compile_one(args: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """Compile, unless the artifact of this very recipe and model is there."""
    if made_of(args, recipe) is None:
        artifact(args, recipe).with_suffix(".json").unlink(missing_ok=True)
    return compile_recipe(recipe, args.model, artifact(args, recipe), cold=False, overrides=overrides_of(args))


def row(args: argparse.Namespace, recipe: str | None, made: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """A recipe's row, or that of full precision; measured and added to the records if it is not there.

    name: of the row, if it is not the recipe's own.
    """
    known = known_row(args, recipe)
    if known is not None:
        return known
    name = name or recipe or FULL_PRECISION
    print(f"measuring {name}", flush=True)
    found: dict[str, Any] = {"name": name, "setting": setting(args, recipe), **measure(args, recipe)}
    if recipe is not None:
        manifest = made_of(args, recipe)
        assert manifest is not None, "the artifact is of another recipe or model"
        found |= {"overrides": list(overrides_of(args)), "artifact": manifest["digest"], "sizes": made.get("sizes")}
        report = json.loads((artifact(args, recipe) / "report.json").read_text())
        found |= {"gbops": report["totals"]["bops"] / 1e9, "parameters": report["totals"]["parameters"]}
        found |= {key: made[key] for key in ("mean_weight_bits", "bytes", "seconds")}
    keep_row(args, recipe, found)
    return found


def measure(args: argparse.Namespace, recipe: str | None) -> dict[str, Any]:
    from dmq_fx.evaluation import COMPILED, compile_module, evaluate
    from dmq_fx.models import fingerprint, load_model
    from dmq_fx.quality.measure import QualityOptions, measure_quality
    from dmq_fx.quality.metric_names import parse_metrics
    from dmq_fx.sampling import SamplerOptions

    shared = {"reference": args.reference, "subset": args.subset or None, "samples_dir": args.output / "images"}
    if recipe is None:
        loaded = load_model(args.model, device=args.device)
        identity = {"model": fingerprint(loaded.denoiser), "compute_dtype": "float32"}
        if args.compile:
            identity["compiled"] = COMPILED
            loaded = replace(loaded, denoiser=compile_module(loaded.denoiser))
        sampling = SamplerOptions(steps=args.steps, batch=args.batch, seed=args.seed)
        wanted = QualityOptions(parse_metrics(metric_names(args)), args.samples, repeats=args.repeats, **shared)
        quality = measure_quality(loaded, loaded.denoiser, (identity, identity), sampling, wanted, show)
        return {"scores": {name: list(score.values) for name, score in quality.scores.items()}}
    found = evaluate(
        artifact(args, recipe),
        metrics=metric_names(args),
        samples=args.samples,
        steps=args.steps,
        seed=args.seed,
        batch=args.batch,
        device=args.device,
        compiled=args.compile,
        backend=args.backend,
        progress=show,
        **shared,
    )
    assert found.quality is not None
    scores = {name: list(score.values) for name, score in found.quality.scores.items()}
    return {"scores": scores, "final_mse": found.final_mse, "trajectory_mse": found.trajectory_mse}


def show(what: str, done: int, total: int) -> None:
    if total and done * 10 // total > (done - 100) * 10 // total:
        print(f"  {what} {done} of {total}", flush=True)


def report(args: argparse.Namespace, rows: dict[str, dict]) -> None:
    names = metric_names(args)
    print(
        f"\n`{args.model}`, {args.samples} images (final MSE: 64) of {args.steps} steps from seed {args.seed} against "
        f"{Path(args.reference).name}{'/' + args.subset if args.subset else ''}, budget {args.budget}, {args.device}"
        f"{', ' + args.backend if args.backend else ''}.\n"
    )
    print(f"| recipe | weight bits | MB | GBOPs | final MSE | {' | '.join(names)} | compile s |")
    print("| --- " * (len(names) + 6) + "|")
    for recipe, found in rows.items():
        scores, *again = zip(*(found["scores"][name] for name in names), strict=True)
        cells = " | ".join(f"{value:.4g}" for value in scores)
        if recipe == FULL_PRECISION:
            print(f"| {recipe} | 32 | | | 0 | {cells} | |")
            for values in again:
                print(f"| {recipe}, other noise | 32 | | | | {' | '.join(f'{value:.4g}' for value in values)} | |")
            continue
        print(
            f"| {recipe} | {found['mean_weight_bits']:.2f} | {found['bytes'] / 1e6:.2f} | {found['gbops']:.1f} "
            f"| {found['final_mse']:.2e} | {cells} | {found['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
