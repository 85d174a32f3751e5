"""`dmq bench`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from dmq_fx.cli.support import (
    CompileOption,
    DeviceOption,
    JsonOption,
    OriginOption,
    PickleOption,
    output_console,
    print_json,
    progress,
)
from dmq_fx.errors import DmqError


def bench_command(
    artifact: Annotated[str, typer.Argument(help="Folder that dmq compile wrote.")],
    backends: Annotated[
        str,
        typer.Option(
            "--backends", help="What is timed: backends, and fp32 or bf16 for full precision (torch.compile)."
        ),
    ] = "fp32,bf16,x86_int8",
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes.")] = "1,4",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Forwards of each, in turn.")] = 10,
    compile: CompileOption = True,
    model: OriginOption = None,
    device: DeviceOption = "cpu",
    allow_pickle: PickleOption = False,
    json: JsonOption = False,
) -> None:
    """Time one forward of an artifact by several backends, side by side, in milliseconds.

    Example: [bold]dmq bench out --backends fp32,fake_quant,x86_int8 --batch 1,4[/]
    """
    from dmq_fx.artifact.opened import open_artifact
    from dmq_fx.bench import REFERENCES, bench
    from dmq_fx.models import load_model
    from dmq_fx.options import parse_device

    parse_device(device)
    names = [name.strip() for name in backends.split(",") if name.strip()]
    batches = _batches(batch)
    with progress(enabled=not json) as show:
        show("loading", 0, 0)
        opened = open_artifact(artifact)
        loaded = None
        if any(name in REFERENCES for name in names):
            loaded = load_model(model or opened.model["origin"], device=device, allow_pickle=allow_pickle)
        found = bench(
            artifact,
            loaded,
            variants=names,
            batches=batches,
            rounds=rounds,
            compile=compile,
            device=device,
            progress=show,
        )
    if json:
        print_json(found.to_json())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("batch", "variant", "ms", "fastest", f"times {names[0]}"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in found.timings:
        table.add_row(str(row.batch), row.variant, f"{row.milliseconds:.1f}", f"{row.fastest:.1f}", f"{row.ratio:.2f}×")
    console = output_console()
    console.print(table)
    console.print(f"\n{found.threads} threads, median of {found.rounds} rounds, peak {found.peak_megabytes:.0f} MB")


def _batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise DmqError(f"{text!r} is no list of batch sizes", where="--batch", hint="such as 1,4")
    return batches
