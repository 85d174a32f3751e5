"""Models that come with dmq: `builtin:NAME` is the folder `dmq_fx.assets`/NAME."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from dmq_fx.errors import ModelError, did_you_mean

PREFIX = "builtin:"


def builtin_names() -> list[str]:
    """Names of the models that come with dmq, without the prefix."""
    return sorted(entry.name for entry in _assets().iterdir() if (entry / "model_index.json").is_file())


def builtin_folder(name: str) -> Path:
    """The pipeline folder of a model that comes with dmq; raises ModelError with the closest names."""
    names = builtin_names()
    if name not in names:
        known = ", ".join(PREFIX + known for known in names) or "none in this installation"
        hint = did_you_mean(name, names) or f"known: {known}"
        raise ModelError(f"there is no builtin model {name!r}", where=PREFIX + name, hint=hint)
    return _assets() / name


def _assets() -> Path:
    return Path(str(resources.files("dmq_fx.assets")))
