"""Reading the JSON files of diffusers' folders, and the configuration of a module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from dmq_fx.errors import ModelError

_PRIVATE = ("_name_or_path", "_use_default_values", "_diffusers_version")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raises ModelError where it is missing or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("the file does not exist", where=str(path), hint=_missing_hint(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"not valid JSON: {error}", where=str(path), hint="download or copy the file again") from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if not isinstance(value, dict):
        raise ModelError(f"expected a JSON object, found {type(value).__name__}", where=str(path))
    return value


def class_name_of(config: dict[str, Any], where: Path) -> str:
    """`_class_name` of a denoiser's config; raises ModelError where it is missing or not a string."""
    name = config.get("_class_name")
    if isinstance(name, str) and name:
        return name
    found = "is missing" if name is None else f"is {name!r}"
    raise ModelError(
        f"'_class_name' {found}",
        where=str(where),
        hint='the config of a denoiser names its diffusers class, for example "_class_name": "UNet2DModel"',
    )


def config_of(module: nn.Module) -> dict[str, Any]:
    """The configuration a diffusers module was built from, as JSON values; {} for any other module."""
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "items"):
        return {}
    values = {key: value for key, value in config.items() if key not in (*_PRIVATE, "_class_name")}
    return json.loads(json.dumps(values, default=_to_json, sort_keys=True))


def _to_json(value: Any) -> Any:
    """JSON for what diffusers' configs hold besides plain values (arrays, tuples inside of frozen dicts)."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _missing_hint(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    near = sorted(entry.name for entry in path.parent.iterdir())[:8]
    return f"the folder holds {', '.join(near)}" if near else "the folder is empty"
