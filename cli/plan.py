"""`dmq plan`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dmq_fx.cli.explain import print_explanation
from dmq_fx.cli.recipe_options import OfflineOption, ParamOption, check_offline, open_library
from dmq_fx.cli.support import JsonOption, ModelOption, SetOption, output_console, print_json

DEFAULT_MODEL = "builtin:ddpm-mnist"


def plan_command(
    recipe: Annotated[str, typer.Argument(help="A recipe file or a library name such as ptq/w8a8.")],
    model: ModelOption = DEFAULT_MODEL,
    set_: SetOption = None,
    param: ParamOption = None,
    offline: OfflineOption = False,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Also the kernel that each site will get, or why none.")
    ] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="SITE", help="Why this site gets its scheme, instead of all.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what a recipe makes of a model, without computing anything; needs no weights.

    Example: [bold]dmq plan ptq/w4a8 --model builtin:ddpm-mnist[/]
    """
    from dmq_fx.backend_plan import plan_backend
    from dmq_fx.compiler import plan, resolve_recipe_for
    from dmq_fx.errors import DmqError
    from dmq_fx.inspection import kernel_lines, site_rows, site_table

    check_offline(offline, model)
    with open_library(offline) as library:
        given: dict[str, Any] = {"overrides": set_ or (), "params": param or (), "library": library}
        if explain is not None:
            if backend is not None:
                hint = "`dmq plan --backend` without --explain tells every site's kernel"
                raise DmqError("--explain says nothing of kernels", where="--backend", hint=hint)
            from dmq_fx.inspection.explain import explain_plan

            print_explanation(explain_plan(recipe, explain, model=model, **given), json)
            return
        lowered = plan_backend(resolve_recipe_for(recipe, model, **given), model, backend) if backend else None
        made = lowered.plan if lowered else plan(recipe, model=model, **given)
    if json:
        print_json((lowered or made).to_json())
        return
    totals = made.totals
    console = output_console()
    facts = {name: lowered.facts(name) for name in made.by_name} if lowered else {}
    console.print(site_table(f"{recipe} on {model}", site_rows(made, facts)))
    console.print(
        f"\n{totals.quantized_sites} of {totals.sites} sites quantized, "
        f"{totals.quantized_parameters / 1e6:.2f} of {totals.parameters / 1e6:.2f} M parameters, "
        f"{totals.mean_weight_bits:.2f} bits a weight on average"
    )
    console.print(
        f"about {totals.bytes / 1e6:.2f} MB of weights (full precision {totals.full_precision_bytes / 1e6:.2f} MB), "
        f"{totals.macs / 1e9:.3f} GMACs and {totals.bops / 1e9:.1f} GBOPs a sample "
        f"({totals.bops / totals.full_precision_bops:.1%} of full precision)"
    )
    if lowered:
        for line in kernel_lines(lowered.backend, lowered.kernels):
            console.print(line)
    for note in dict.fromkeys(note for planned in made.sites for note in planned.notes):
        count = sum(note in planned.notes for planned in made.sites)
        console.print(f"note: {note} ({count} sites)")
