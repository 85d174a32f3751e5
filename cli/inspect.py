"""`dmq inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmq_fx.cli.support import JsonOption, output_console, print_json
from dmq_fx.errors import DmqError, did_you_mean


def inspect_command(
    artifact: Annotated[str, typer.Argument(help="Folder that dmq compile wrote.")],
    site: Annotated[str | None, typer.Option("--site", metavar="GLOB", help="Only sites whose name matches.")] = None,
    json: JsonOption = False,
) -> None:
    """Show what was done to every site of an artifact: precision, size, error (SQNR in dB).

    Example: [bold]dmq inspect out --site 'up_blocks.*.conv_shortcut'[/]
    """
    from dmq_fx.artifact.folder import artifact_sizes, open_artifact
    from dmq_fx.inspection import artifact_rows, filter_rows, site_table

    opened = open_artifact(artifact)
    rows = artifact_rows(opened.sites)
    chosen = filter_rows(rows, site)
    if site is not None and not chosen:
        hint = did_you_mean(site, [row["name"] for row in rows]) or "`dmq inspect` without --site lists them"
        raise DmqError(f"no site matches {site!r}", where=artifact, hint=hint)
    recipe = opened.manifest.content["recipe"]
    sizes = artifact_sizes(opened)
    if json:
        print_json(
            {
                "recipe": recipe,
                "digest": opened.manifest.digest,
                "model": opened.model,
                "bytes": opened.bytes,
                "totals": opened.report["totals"],
                "sizes": sizes,
                "passes": opened.report["passes"],
                "timesteps": opened.report["timesteps"],
                "sites": [dict(row) for row in chosen],
            }
        )
        return
    totals = opened.report["totals"]
    console = output_console()
    console.print(site_table(f"{recipe['name']} {recipe['version']}", chosen))
    console.print(
        f"\n{totals['quantized_sites']} of {totals['sites']} sites quantized, {totals['mean_weight_bits']:.2f} bits "
        f"a weight on average, {opened.bytes / 1e6:.2f} MB on disk"
    )
    if "paper_bytes" in sizes:
        console.print(
            f"the model: {sizes['paper_bytes'] / 1e6:.2f} MB as papers count (every parameter at the bits of most "
            f"weights), {sizes['honest_bytes'] / 1e6:.2f} MB with scales, ranges and full precision, "
            f"{sizes['file_bytes'] / 1e6:.2f} MB in the file"
        )
