"""The `dmq` command: one file a sub-command, no logic of its own."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from dmq_fx.cli.bench import bench_command
from dmq_fx.cli.compile import compile_command
from dmq_fx.cli.completion import completion_command
from dmq_fx.cli.diff import diff_command
from dmq_fx.cli.evaluate import evaluate_command
from dmq_fx.cli.explain import explain_command
from dmq_fx.cli.graph import graph_command
from dmq_fx.cli.inspect import inspect_command
from dmq_fx.cli.plan import plan_command
from dmq_fx.cli.recipe import app as recipe_app
from dmq_fx.cli.reference import reference_command
from dmq_fx.cli.sample import sample_command
from dmq_fx.cli.support import guarded, quiet
from dmq_fx.cli.validate import validate

app = typer.Typer(
    name="dmq",
    help="Compile quantization recipes for diffusion models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in (
    ("plan", plan_command),
    ("validate", validate),
    ("compile", compile_command),
    ("inspect", inspect_command),
    ("graph", graph_command),
    ("diff", diff_command),
    ("explain", explain_command),
    ("sample", sample_command),
    ("eval", evaluate_command),
    ("bench", bench_command),
    ("reference", reference_command),
    ("completion", completion_command),
):
    app.command(name)(guarded(command))
app.add_typer(recipe_app, name="recipe")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dmq {version('dmq-fx')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Compile quantization recipes for diffusion models."""


def main() -> None:
    """Entry point of the `dmq` script."""
    quiet()
    app()
