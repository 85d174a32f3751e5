"""What the sub-commands share: errors to exit codes, progress on stderr, JSON on stdout."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dmq_fx.errors import DmqError

F = TypeVar("F", bound=Callable[..., Any])
errors = Console(stderr=True, soft_wrap=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="builtin:NAME, a pipeline or denoiser folder, a hub id, or config:FILE.json (plan only).",
    ),
]
OriginOption = Annotated[
    str | None,
    typer.Option("--model", help="The full-precision model; where the artifact says it came from, if left out."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the recipe. Repeatable.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
BackendOption = Annotated[str | None, typer.Option("--backend", help="Lowering target; the recipe's own if left out.")]
CompileOption = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Native code, where the backend makes any (kept for next time).")
]
PromptOption = Annotated[
    list[str] | None, typer.Option("--prompt", help="Text-to-image only. Repeatable, used in turn.")
]
PromptsFileOption = Annotated[
    str | None, typer.Option("--prompts-file", help="Text-to-image only. A text file of prompts, one a line.")
]
GuidanceOption = Annotated[
    float | None, typer.Option("--guidance-scale", min=0.0, help="The pipeline's own if left out.")
]
PickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Also read .bin and .ckpt weights of the model (tensors only).")
]


def all_prompts(prompts: list[str] | None, file: str | None) -> tuple[str, ...]:
    """Those of the command line, then those of a file."""
    from dmq_fx.sampling import read_prompts

    return (*(prompts or ()), *(read_prompts(file) if file is not None else ()))


def quiet() -> None:
    """Keep the libraries' remarks about kernels and enums that are not there out of the user's terminal."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("torchao", "torchao.prototype", "diffusers", "transformers", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def guarded(command: F) -> F:
    """Turn errors into messages and exit codes: 2 bad input, 3 a failed gate, 1 a fault of dmq's own."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except DmqError as error:
            from dmq_fx.inspection.text import visible

            text = "\n".join(visible(line) for line in str(error).split("\n"))
            errors.print(f"[bold red]error:[/] {escape(text)}", highlight=False)
            raise typer.Exit(error.exit_code) from None
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            errors.print("interrupted")
            raise typer.Exit(130) from None
        except Exception as error:
            errors.print_exception(show_locals=False)
            errors.print(f"[bold red]a fault of dmq itself:[/] {escape(repr(error))}; please report it with the above")
            raise typer.Exit(1) from None

    return run  # type: ignore[return-value]


def output_console() -> Console:
    """For stdout: a terminal's own width; in a pipe wide enough for a line a site."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def progress(enabled: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that shows progress bars on stderr.

    A detail that changes, such as a loss, may follow `what` after " · ".
    """
    if not enabled:
        yield lambda what, done, total: None
        return
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=errors) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            what, _, detail = what.partition(" · ")
            for name, task in tasks.items():
                if name != what and not bars.tasks[task].finished:
                    bars.update(task, total=1, completed=1)
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None, detail="")
            bars.update(tasks[what], completed=done, total=total or None, detail=detail)

        yield show
        show("", 1, 1)
        bars.remove_task(tasks[""])
