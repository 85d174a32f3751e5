"""The rows of MPQ-DM's tables 1, 5, 6 and 7 on one model: sizes three ways, quality, error and time, by several seeds.

    python benchmarks/mpqdm.py --reference mnist.tar.xz --samples 5000 --output out/mpqdm \
        --records benchmarks/records/mpqdm-ddpm-mnist.json --seeds 0 1 2 [--tables 1 5] [--budget standard]

A seed is that of calibration, of the noise that is learned from and of everything drawn; images are measured from the
same noise for all, so that a standard deviation is of compiles alone. Artifacts, images and rows are kept as those of
`benchmarks/quality.py`, whose parts these are: an interrupted run goes on. Sizes are the paper's (all parameters at the
body's bits), the sum of what has to be stored, and that of the file with the tensors.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from quality import add_arguments, compile_one, row
from rows import FULL_PRECISION, known_row, metric_names

SETTINGS = ("w3a6", "w3a4", "w2a6", "w2a4")
TABLES: dict[int, tuple[str, ...]] = {
    1: (
        *(f"{family}/{setting}" for setting in SETTINGS for family in ("naive", "hawq", "efficientdm", "mpq-dm")),
        "mpq-dm/w2a6-plus",
        "mpq-dm/w2a4-plus",
        "combo/dmq-mpq-w3a6",
    ),
    5: ("efficientdm/w3a4", "mpq-dm/ablation/no-distill", "mpq-dm/ablation/trd", "mpq-dm/w3a4"),
    6: (
        "mpq-dm/ablation/trd",
        "prescaled/w3a4",
        "mpq-dm/ablation/selector-random",
        "mpq-dm/ablation/selector-head-tail",
        "mpq-dm/w3a4",
    ),
    7: ("mpq-dm/ablation/no-distill", "mpq-dm/ablation/l2", "mpq-dm/w3a4"),
}
"""Recipes by the paper's tables. Table 5: EfficientDM, with bits by channel, with relations, with both. Table 6: all
channels alike, the same with `omq`'s pre-scaling, then channels at random, the first and last, by kurtosis."""
DERIVED: dict[str, tuple[str, tuple[str, ...]]] = {
    "naive": ("efficientdm", ("passes=[]",)),
    "prescaled": ("mpq-dm", ("passes.omq.candidates=[0]",)),
}
"""Families that are another's recipes but for what is set: the same ranges and nearest rounding; `omq` whose only
candidate is to give all channels the same bits, which leaves its pre-scaling."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--tables", type=int, nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--recipes", nargs="+", help="these alone, in one table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", default="standard", choices=("quick", "standard", "full"))
    args = parser.parse_args()
    tables = {0: tuple(args.recipes)} if args.recipes else {number: TABLES[number] for number in args.tables}
    rows: dict[str, list[dict[str, Any]]] = {FULL_PRECISION: [row(of_seed(args, args.seeds[0]), None, {})]}
    for seed in args.seeds:  # a whole table of one seed comes before the next seed
        for name in dict.fromkeys(name for names in tables.values() for name in names):
            rows.setdefault(name, []).append(measured(args, name, seed))
    for number, names in tables.items():
        report(args, number, {name: rows[name] for name in (FULL_PRECISION, *names)})


def of_seed(args: Namespace, seed: int, overrides: tuple[str, ...] = ()) -> Namespace:
    """The arguments of `quality.py` for one seed, with a folder and overrides of its own."""
    given = (f"calibration.seed={seed * 1000}", *overrides)
    found = Namespace(**{**vars(args), "output": args.output / f"seed-{seed}", "overrides": given})
    found.output.mkdir(parents=True, exist_ok=True)
    return found


def measured(args: Namespace, name: str, seed: int) -> dict[str, Any]:
    """A recipe's row at one seed, with its sizes; from the records if it is there."""
    recipe, overrides = name, ()
    family, _, rest = name.partition("/")
    if family in DERIVED:
        recipe, overrides = f"{DERIVED[family][0]}/{rest}", DERIVED[family][1]
    own = of_seed(args, seed, overrides)
    if overrides:
        own.output = own.output / family
        own.output.mkdir(exist_ok=True)
    known = known_row(own, recipe)
    return known if known is not None else row(own, recipe, compile_one(own, recipe), name)


def spread(values: list[float], digits: str = ".4g") -> str:
    """Mean and standard deviation; one value alone as it is."""
    if len(values) == 1:
        return f"{values[0]:{digits}}"
    return f"{mean(values):{digits}} ± {stdev(values):.2g}"


def report(args: Namespace, number: int, rows: dict[str, list[dict[str, Any]]]) -> None:
    names = tuple(name for name in metric_names(args) if not name.startswith("recall"))
    title = f"Table {number}: " if number else ""
    print(
        f"\n{title}`{args.model}`, {args.samples} images (final MSE: 64) of {args.steps} steps from seed {args.seed} "
        f"against {Path(args.reference).name}{'/' + args.subset if args.subset else ''}, budget {args.budget}, "
        f"{len(args.seeds)} compiles a row (± their standard deviation, on the same noise), {args.device}"
        f"{', ' + args.backend if args.backend else ''}.\n"
    )
    print(f"| recipe | weight bits | MB: paper, honest, file | {' | '.join(names)} | final MSE | compile s |")
    print("| --- " * (len(names) + 5) + "|")
    for recipe, found in rows.items():
        scores = [[value for one in found for value in one["scores"][name]] for name in names]
        cells = " | ".join(spread(values) for values in scores)
        if recipe == FULL_PRECISION:
            print(f"| {recipe}, {len(scores[0])} sets of noise | 32 | | {cells} | 0 | |")
            continue
        sizes = [mean(one["sizes"][f"{kind}_bytes"] for one in found) / 1e6 for kind in ("paper", "honest", "file")]
        bits = mean(one["sizes"]["paper_bytes"] * 8 / one["parameters"] for one in found)
        error, seconds = ([one[key] for one in found] for key in ("final_mse", "seconds"))
        print(
            f"| {recipe} | {bits:.2f} | {', '.join(f'{size:.3f}' for size in sizes)} | {cells} "
            f"| {spread(error, '.2e')} | {spread(seconds, '.0f')} |"
        )


if __name__ == "__main__":
    main()
