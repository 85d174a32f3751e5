"""`dmq compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dmq_fx.cli.plan import DEFAULT_MODEL
from dmq_fx.cli.recipe_options import (
    OfflineOption,
    ParamOption,
    SignedOption,
    TrustedOption,
    check_offline,
    open_library,
)
from dmq_fx.cli.support import (
    DeviceOption,
    JsonOption,
    ModelOption,
    PickleOption,
    SetOption,
    errors,
    print_json,
    progress,
)
from dmq_fx.errors import GateError


def compile_command(
    recipe: Annotated[str, typer.Argument(help="A recipe file or a library name such as ptq/w8a8.")],
    model: ModelOption = DEFAULT_MODEL,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder that the artifact is written to.")] = "out",
    set_: SetOption = None,
    param: ParamOption = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of the calibration (default: the recipe's)."),
    ] = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Type that the rest of the model computes in (default: float32).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there already.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted compile to the same folder stopped.")
    ] = False,
    allow_pickle: PickleOption = False,
    verify_backend: Annotated[
        str | None, typer.Option("--verify-backend", help="Compare a backend with fake quantization, sites and images.")
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="The result takes any height and width (UNets).")
    ] = False,
    locked: Annotated[
        bool, typer.Option("--locked", help="Fail if the recipe resolves to something else than its lock.")
    ] = False,
    lock: Annotated[
        Path | None, typer.Option("--lock", metavar="FILE", help="The lock of --locked (default: recipe.lock.yaml).")
    ] = None,
    offline: OfflineOption = False,
    require_signed: SignedOption = False,
    trusted_keys: TrustedOption = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Keep distributions and images for `dmq inspect`.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Compile a recipe for a model into an artifact.

    Example: [bold]dmq compile ptq/w8a8 --model builtin:ddpm-mnist -o out[/]
    """
    from dmq_fx.checkpoint import has_checkpoint
    from dmq_fx.compiler import compile
    from dmq_fx.gates import describe_failures
    from dmq_fx.recipe.lock import default_lock

    if resume and not has_checkpoint(output):
        errors.print(f"no checkpoint beside {escape(output)}: starting from the beginning")
    try:
        check_offline(offline, model)
        with open_library(offline, require_signed, trusted_keys) as library, progress(enabled=not json) as show:
            result = compile(
                recipe,
                model=model,
                output=output,
                overrides=set_ or (),
                seed=seed,
                device=device,
                dtype=dtype,
                force=force,
                resume=resume,
                allow_pickle=allow_pickle,
                verify_backend=verify_backend,
                dynamic_size=dynamic_size,
                params=param or (),
                library=library,
                locked=(lock or default_lock(recipe)) if locked or lock else None,
                report=report,
                progress=show,
            )
    except KeyboardInterrupt:
        if not has_checkpoint(output):
            raise
        errors.print("interrupted: the same command with --resume goes on from here")
        raise typer.Exit(130) from None
    if json:
        print_json(result.to_json())
    else:
        totals = result.plan.totals
        console = Console(highlight=False, soft_wrap=True)
        console.print(
            f"wrote {result.output}: {totals.quantized_sites} of {totals.sites} sites quantized, "
            f"{totals.mean_weight_bits:.2f} bits a weight, {result.bytes / 1e6:.2f} MB, {result.seconds:.0f} s"
        )
        if result.passes:
            done = ", ".join(f"{one['pass']} {one['sites']} sites" for one in result.passes)
            console.print(f"passes: {done}")
        for one in result.passes:
            if not one["sites"]:
                console.print(f"note: {one['pass']} found nothing to do in this model; report.json says why")
        console.print(f"digest {result.digest}")
        if result.parity:
            found = result.parity
            console.print(
                f"{found.backend}: {found.sites} sites agree with fake quantization to {found.site_error:.1e}; "
                f"MSE of predictions {found.backend_mse:.3e}, there {found.fake_mse:.3e} ({found.difference:.1%} apart)"
            )
    failed = tuple(gate for gate in result.gates if not gate.passed)
    if failed:
        raise GateError(
            f"the compiled model does not meet its recipe's expectations: {describe_failures(failed)}",
            where=str(result.output),
            hint="the artifact was written and can be inspected",
        )
