"""What a `--model` string means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dmq_fx.errors import ModelError
from dmq_fx.models.builtin import PREFIX, builtin_folder
from dmq_fx.models.hub import is_hub_id

CONFIG_PREFIX = "config:"
FORMS = "builtin:NAME, a folder of a diffusers pipeline or denoiser, org/name on the hub, or config:FILE.json"


@dataclass(frozen=True)
class Source:
    """A parsed model source.

    kind: `pipeline` and `denoiser` are folders, `config` a JSON file, `hub` a repository that is not fetched yet.
    path: the folder or file; None for `hub`.
    """

    text: str
    kind: Literal["pipeline", "denoiser", "config", "hub"]
    path: Path | None


def parse_source(source: str | Path) -> Source:
    """Decide what a model source is; raises ModelError where it is nothing that exists or could be fetched."""
    text = str(source)
    if text.startswith(PREFIX):
        return Source(text, "pipeline", builtin_folder(text[len(PREFIX) :]))
    if text.startswith(CONFIG_PREFIX):
        return Source(text, "config", Path(text[len(CONFIG_PREFIX) :]).expanduser())
    path = Path(text).expanduser()
    if path.is_dir():
        return Source(text, folder_kind(path), path)
    if path.is_file():
        hint = (
            f"give its folder, or {CONFIG_PREFIX}{text} to plan from a config alone" if path.suffix == ".json" else None
        )
        raise ModelError("a model is a folder, and this is a file", where=text, hint=hint or f"expected {FORMS}")
    if isinstance(source, str) and is_hub_id(text):
        return Source(text, "hub", None)
    raise ModelError("there is no such model", where=text, hint=f"expected {FORMS}")


def folder_kind(folder: Path) -> Literal["pipeline", "denoiser"]:
    """Whether a folder holds a pipeline or one denoiser."""
    if (folder / "model_index.json").is_file():
        return "pipeline"
    if (folder / "config.json").is_file():
        return "denoiser"
    raise ModelError(
        "the folder holds neither a pipeline nor a denoiser",
        where=str(folder),
        hint="expected model_index.json (a diffusers pipeline) or config.json (a denoiser)",
    )
