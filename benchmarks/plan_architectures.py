"""How long it takes to trace published denoisers on the meta device and to find their sites and roles.

    python benchmarks/plan_architectures.py [NAME ...] [--dynamic-size]

Prints one line an architecture: parameters, sites, attention products, GMACs at the traced size, and CPU seconds
(which do not change with what else the machine does). Weights are neither read nor allocated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from dmq_fx.models import load_denoiser_on_meta
from dmq_fx.roles import find_sites
from dmq_fx.tracing import trace

CONFIGS = Path(__file__).parent.parent / "tests" / "architectures" / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="configs in tests/architectures/configs; all by default")
    parser.add_argument("--dynamic-size", action="store_true", help="trace with any height and width (UNets)")
    options = parser.parse_args()
    names = options.names or sorted(path.stem for path in CONFIGS.glob("*.json"))
    titles = ("parameters", 12), ("sites", 6), ("products", 9), ("GMACs", 9), ("trace s", 8), ("roles s", 8)
    print("architecture".ljust(20), *(title.rjust(width) for title, width in titles), flush=True)
    for name in names:
        print(measure(name, dynamic_size=options.dynamic_size), flush=True)


def measure(name: str, *, dynamic_size: bool) -> str:
    """One line of the table."""
    denoiser = load_denoiser_on_meta(f"config:{CONFIGS / name}.json").denoiser
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    start = time.process_time()
    traced = trace(denoiser, dynamic_size=dynamic_size)
    middle = time.process_time()
    sites = find_sites(traced)
    end = time.process_time()
    products = sum(site.weight is None for site in sites)
    macs = sum(site.macs for site in sites) / 1e9
    times = f"{middle - start:8.1f} {end - middle:8.2f}"
    return f"{name:20} {parameters / 1e6:11.1f}M {len(sites):6} {products:9} {macs:9.1f} {times}"


if __name__ == "__main__":
    main()
