"""How much of a quantized model's error is a shift of the mean, which adds up over the sampler?

    python benchmarks/mean_shift.py out/dmq/dmq-ablation-les-weighted-w4a8 out/dmq/dmq-w4a8

Runs full precision through the sampler and asks every artifact for its prediction of the same states. Prints, for some
steps, the mean squared error of the prediction, the share of it that is the same in every sample (the square of the
error's mean over samples, pixel by pixel), and the error's mean over samples and pixels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dmq_fx
from dmq_fx.models import LoadedModel, load_model
from dmq_fx.runtime import QuantizedDenoiser
from dmq_fx.sampling import Sampler, SamplerOptions, watch_inputs, watch_outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--seed", type=int, default=10_000, help="first image; the recipes' own calibration begins at 0"
    )
    parser.add_argument(
        "--shown", type=int, nargs="+", default=[1, 4, 8, 12, 16, 20], help="sampler steps in the table"
    )
    args = parser.parse_args()
    origins = {
        json.loads((path / "manifest.json").read_text())["content"]["model"]["origin"] for path in args.artifacts
    }
    if len(origins) > 1:
        raise SystemExit(f"the artifacts are of different models: {', '.join(sorted(origins))}")
    options = SamplerOptions(steps=args.steps, batch=args.samples, seed=args.seed)
    calls = full_precision(load_model(origins.pop()), options)
    steps = [step for step in args.shown if step <= len(calls)]
    print(
        f"{args.samples} samples, seed {args.seed}: error of the prediction where the full-precision sampler passes.\n"
    )
    print("| artifact | what | " + " | ".join(f"step {step}" for step in steps) + " |")
    print("| --- | --- | " + " | ".join("---" for _ in steps) + " |")
    for path in args.artifacts:
        rows = shifts(dmq_fx.load(path), [calls[step - 1] for step in steps])
        for what, values, form in zip(
            ("MSE", "the same in all", "mean"), zip(*rows, strict=True), (".1e", ".0%", "+.4f"), strict=True
        ):
            print(f"| {path.name} | {what} | " + " | ".join(f"{value:{form}}" for value in values) + " |", flush=True)


def full_precision(loaded: LoadedModel, options: SamplerOptions) -> list[tuple[tuple, dict, Tensor]]:
    """Arguments and prediction of every denoiser call of one batch."""
    inputs: list[tuple[tuple, dict]] = []
    outputs: list[Tensor] = []
    with (
        watch_inputs(loaded.denoiser, lambda positional, named: inputs.append((positional, named))),
        watch_outputs(loaded.denoiser, lambda prediction: outputs.append(prediction)),
    ):
        next(Sampler(loaded, options).run(options.batch))
    return [(*given, output) for given, output in zip(inputs, outputs, strict=True)]


@torch.no_grad()
def shifts(quantized: torch.nn.Module, calls: list[tuple[tuple, dict, Tensor]]) -> list[tuple[float, float, float]]:
    """(MSE, share that is the same in every sample, mean) of the error at every call."""
    found = []
    for positional, named, exact in calls:
        error = quantized(*positional, **named | {"return_dict": False})[0] - exact
        mse = float(error.square().mean())
        found.append((mse, float(error.mean(0).square().mean()) / mse, float(error.mean())))
    return found


class WithoutMeans(torch.nn.Module):
    """A lowered graph; the n-th of `means` is taken off what the n-th call of a sampler run predicts."""

    def __init__(self, lowered: torch.nn.Module, means: list[Tensor]) -> None:
        super().__init__()
        self.lowered, self.means, self.step = lowered, means, 0

    def forward(self, *args: Tensor) -> Any:
        (prediction,) = self.lowered(*args)
        self.step += 1
        return (prediction - self.means[(self.step - 1) % len(self.means)],)


def take_off_means(quantized: QuantizedDenoiser, calls: list[tuple[tuple, dict, Tensor]]) -> None:
    """Make `quantized` predict without its mean error, as the pass `output_correction` does.

    For samplers of as many steps as `calls` has, on the same model.
    """
    with torch.no_grad():
        errors = [quantized(*a, **k | {"return_dict": False})[0] - exact for a, k, exact in calls]
    means = [error.mean((0, 2, 3), keepdim=True) for error in errors]
    quantized.lowered = WithoutMeans(quantized.lowered, means)


if __name__ == "__main__":
    main()
