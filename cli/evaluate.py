"""`dmq eval`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from dmq_fx.cli.support import (
    BackendOption,
    DeviceOption,
    JsonOption,
    OriginOption,
    PickleOption,
    PromptOption,
    output_console,
    print_json,
    progress,
)


def evaluate_command(
    artifact: Annotated[str, typer.Argument(help="Folder that dmq compile wrote.")],
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="Images that are compared.")] = 64,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Sampler steps.")] = 20,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of the first image; image k has seed + k.")
    ] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a forward.")] = 32,
    prompt: PromptOption = None,
    model: OriginOption = None,
    backend: BackendOption = None,
    device: DeviceOption = "cpu",
    allow_pickle: PickleOption = False,
    json: JsonOption = False,
) -> None:
    """Measure how far an artifact strays from full precision when both start from the same noise.

    Example: [bold]dmq eval out --samples 64 --json[/]
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
            prompts=tuple(prompt or ()),
            backend=backend,
            device=device,
            allow_pickle=allow_pickle,
            progress=show,
        )
    if json:
        print_json(found.to_json())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "state MSE", "state cosine", "prediction MSE"):
        table.add_column(name, justify="right")
    rows = zip(found.trajectory_mse, found.trajectory_cosine, found.prediction_mse, strict=False)
    for step, (mse, cosine, prediction) in enumerate(rows):
        table.add_row(str(step + 1), f"{mse:.3e}", f"{cosine:.6f}", f"{prediction:.3e}")
    console = output_console()
    console.print(table)
    psnr = "equal" if found.final_psnr is None else f"{found.final_psnr:.2f} dB"
    console.print(f"\nfinal images, {found.samples} samples: MSE {found.final_mse:.3e}, PSNR {psnr}")
