"""The table that benchmarks/x86_unet.py prints: a row for a variant and a batch size, and what was measured where."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from x86_variants import OPENVINO_INT8, VARIANTS, Bench

from dmq_fx.models import fingerprint

PACKAGES = ("dmq-fx", "torch", "diffusers", "openvino", "nncf")
CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


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
