"""`dmq eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dmq_fx.cli.support import (
    BackendOption,
    DeviceOption,
    GuidanceOption,
    JsonOption,
    OriginOption,
    PickleOption,
    PromptOption,
    PromptsFileOption,
    all_prompts,
    output_console,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from dmq_fx.metrics import Evaluation
    from dmq_fx.quality.measure import Quality, Score


def evaluate_command(
    artifact: Annotated[str, typer.Argument(help="Folder that dmq compile wrote.")],
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics", help="fid, sfid, is, precision, recall, psnr, lpips, clip; fd-mnist, ... (eval extra)"
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Image folder, archive, stored statistics (.safetensors), or full-precision."),
    ] = None,
    subset: Annotated[
        str | None, typer.Option("--subset", help="Folder inside of the reference, such as test.")
    ] = None,
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="Images that are compared.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Sets of so many images: mean and deviation.")] = 1,
    full_precision: Annotated[
        bool, typer.Option("--full-precision", help="Also the metrics of full precision, on the same noise.")
    ] = False,
    feature_extractor: Annotated[
        str | None, typer.Option("--feature-extractor", help="File of Inception's weights; from the hub if left out.")
    ] = None,
    clip_model: Annotated[str | None, typer.Option("--clip-model", help="Folder or hub id of the CLIP model.")] = None,
    samples_dir: Annotated[
        str | None, typer.Option("--samples-dir", help="Keep the images there, and go on from those that are.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Sampler steps.")] = 20,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of the first image; image k has seed + k.")
    ] = 10_000,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a forward.")] = 32,
    prompt: PromptOption = None,
    prompts_file: PromptsFileOption = None,
    guidance_scale: GuidanceOption = None,
    model: OriginOption = None,
    backend: BackendOption = None,
    device: DeviceOption = "cpu",
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="fake_quant: images for metrics by torch.compile. x86_int8 makes native code unless told not to.",
        ),
    ] = None,
    allow_pickle: PickleOption = False,
    json: JsonOption = False,
) -> None:
    """Measure how far an artifact strays from full precision from the same noise, and how good its images are.

    Example: [bold]dmq eval out --metrics fd-mnist,precision-mnist --reference mnist.tar.xz --subset test -n 5000[/]
    """
    from dmq_fx.evaluation import evaluate

    with progress(enabled=not json) as show:
        show("loading", 0, 0)
        found = evaluate(
            artifact,
            model=model,
            samples=samples,
            steps=steps,
            seed=seed,
            batch=batch,
            prompts=all_prompts(prompt, prompts_file),
            guidance_scale=guidance_scale,
            metrics=metrics or (),
            reference=reference,
            subset=subset,
            repeats=repeats,
            full_precision=full_precision,
            feature_extractor=feature_extractor,
            clip_model=clip_model,
            samples_dir=samples_dir,
            backend=backend,
            device=device,
            compiled=compile,
            allow_pickle=allow_pickle,
            progress=show,
        )
    if json:
        print_json(found.to_json())
        return
    console = output_console()
    console.print(_trajectory(found))
    psnr = "equal" if found.final_psnr is None else f"{found.final_psnr:.2f} dB"
    console.print(f"\nfinal images, {found.samples} samples: MSE {found.final_mse:.3e}, PSNR {psnr}")
    if found.quality is not None:
        _print_quality(console, found.quality)


def _trajectory(found: Evaluation) -> Table:
    """Errors by step. `same input`: of the call itself; `prediction`: with what the steps before have added."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "state MSE", "state cosine", "prediction MSE", "same input"):
        table.add_column(name, justify="right")
    rows = zip(
        found.trajectory_mse,
        found.trajectory_cosine,
        found.prediction_mse,
        found.prediction_mse_same_input,
        strict=False,
    )
    for step, (mse, cosine, prediction, same) in enumerate(rows):
        table.add_row(str(step + 1), f"{mse:.3e}", f"{cosine:.6f}", f"{prediction:.3e}", f"{same:.3e}")
    return table


def _print_quality(console: Console, quality: Quality) -> None:
    sets = f"{quality.repeats} sets of {quality.samples}" if quality.repeats > 1 else f"{quality.samples}"
    against = f", against {quality.reference}" if quality.reference else ""
    console.print(f"\nmetrics of {sets} images{against}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    table.add_column("quantized", justify="right")
    if quality.full_precision is not None:
        table.add_column("full precision", justify="right")
    for name, score in quality.scores.items():
        exact = None if quality.full_precision is None else quality.full_precision.get(name)
        cells = [_shown(score)]
        if quality.full_precision is not None:
            cells.append("" if exact is None else _shown(exact))
        table.add_row(name, *cells)
    console.print(table)


def _shown(score: Score) -> str:
    if score.mean is None:
        equal = sum(value is None for value in score.values)
        return "equal" if equal == len(score.values) else f"{equal} of {len(score.values)} sets equal"
    return f"{score.mean:.4g}" if score.std is None else f"{score.mean:.4g} ± {score.std:.2g}"
