"""Quality of every recipe of the library on one model: distances to real images, precision, recall, sizes, a picture.

    python benchmarks/quality.py --reference mnist.tar.xz --samples 5000 --output out/quality \
        --figure docs/images/quality.png --records benchmarks/records/quality-ddpm-mnist.json [--recipes ...]

Prints the table of docs/results.md. Artifacts and images are kept in the output folder: a run that is interrupted goes
on, and adding a recipe costs one row. Rows are kept in the records, by the digests of recipe and model, and may be
committed: those that are there are neither compiled nor measured again (but where an artifact in the output folder is
another one). Full precision is measured on two sets of noise: what lies between them is no difference.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from baselines import artifact, compile_recipe, draw_grids

SHOWN = ("ptq/w8a8", "ptq/w4a8", "dmq/w4a8", "dmq/w4a6")
FULL_PRECISION = "full precision"


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
        shown = {name: artifact(args, name) for name in args.shown if name in recipes and artifact(args, name).exists()}
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
    return compile_recipe(recipe, args.model, artifact(args, recipe), cold=False, overrides=overrides_of(args))


def overrides_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The budget, and what a script that uses these functions sets beside it."""
    return (f"budget={args.budget}", *getattr(args, "overrides", ()))


def metric_names(args: argparse.Namespace) -> tuple[str, ...]:
    if args.extractor == "inception":
        return ("fid", "sfid", "is", "precision", "recall")
    return tuple(f"{stem}-{args.extractor}" for stem in ("fd", "sfd", "is", "precision", "recall"))


def key_of(args: argparse.Namespace, recipe: str | None) -> str:
    """The model's name and digest, and the digest of the recipe with its overrides and backend, or `full precision`."""
    from dmq_fx.compiler import resolve_recipe

    digest = FULL_PRECISION if recipe is None else resolve_recipe(recipe, overrides_of(args)).digest
    parts = [args.model, model_digest(args.model), digest]
    if recipe is not None and args.backend:
        parts.append(args.backend)
    return " ".join(parts)


@cache
def model_digest(model: str) -> str:
    from dmq_fx.models import fingerprint, load_model

    return fingerprint(load_model(model).denoiser)


def read_records(args: argparse.Namespace) -> dict[str, Any]:
    return json.loads(args.records.read_text()) if args.records.exists() else {}


def known_row(args: argparse.Namespace, recipe: str | None) -> dict[str, Any] | None:
    """What was measured before under the same setting; None for nothing, or if another artifact is there now."""
    known = read_records(args).get(key_of(args, recipe))
    if known is None or known["setting"] != setting(args, recipe):
        return None
    manifest = artifact(args, recipe) / "manifest.json" if recipe is not None else None
    if manifest is not None and manifest.exists() and json.loads(manifest.read_text())["digest"] != known["artifact"]:
        return None
    return known


def setting(args: argparse.Namespace, recipe: str | None) -> dict[str, Any]:
    """What a row was measured with; the backend is none of full precision's concern."""
    names = ("samples", "steps", "seed", "subset", "device", "budget", "compile")
    found = {name: getattr(args, name) for name in names}
    found |= {"reference": Path(args.reference).name, "metrics": list(metric_names(args))}
    if recipe is not None and args.backend:
        found["backend"] = args.backend
    return found


def row(args: argparse.Namespace, recipe: str | None, made: dict[str, Any]) -> dict[str, Any]:
    """A recipe's row, or that of full precision; measured and added to the records if it is not there."""
    known = known_row(args, recipe)
    if known is not None:
        return known
    print(f"measuring {recipe or FULL_PRECISION}", flush=True)
    found = {"name": recipe or FULL_PRECISION, "setting": setting(args, recipe), **measure(args, recipe)}
    if recipe is not None:
        folder = artifact(args, recipe)
        found["artifact"] = json.loads((folder / "manifest.json").read_text())["digest"]
        found["gbops"] = json.loads((folder / "report.json").read_text())["totals"]["bops"] / 1e9
        found |= {key: made[key] for key in ("mean_weight_bits", "bytes", "seconds")}
        found["sizes"] = made.get("sizes")
    args.records.parent.mkdir(parents=True, exist_ok=True)
    records = read_records(args) | {key_of(args, recipe): found}  # read again: another process may have added rows
    partial = args.records.with_suffix(".partial")
    partial.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    partial.replace(args.records)
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
        wanted = QualityOptions(parse_metrics(metric_names(args)), args.samples, repeats=2, **shared)
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
            print(f"| {recipe}, other noise | 32 | | | | {' | '.join(f'{value:.4g}' for value in again[0])} | |")
            continue
        print(
            f"| {recipe} | {found['mean_weight_bits']:.2f} | {found['bytes'] / 1e6:.2f} | {found['gbops']:.1f} "
            f"| {found['final_mse']:.2e} | {cells} | {found['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
