"""`recipe.lock.yaml`: a resolved recipe and what it was compiled with. A lock is itself a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.dump import to_yaml
from dmq_fx.recipe.keys import to_plain
from dmq_fx.recipe.resolve import ResolvedRecipe

LOCK_NAME = "recipe.lock.yaml"

_HEADER = (
    "# Written by dmq. The recipe with every default and parent written out; `dmq compile` takes this file as it is.\n"
    "# To change it use --set, or remove the lock: block.\n"
)


def default_lock(recipe: str | Path) -> Path:
    """Where the lock of a recipe is looked for: beside a recipe file, else in the current folder."""
    path = Path(recipe)
    return path.parent / LOCK_NAME if path.suffix in (".yaml", ".yml") else Path(LOCK_NAME)


def lock_document(
    resolved: ResolvedRecipe, *, model: Mapping[str, Any], environment: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """The document of a lock: the resolved recipe and a `lock:` block.

    model: fingerprint, origin and class. environment: package versions. Both hold plain data (JSON values).
    """
    block = {
        "sha256": resolved.digest,
        **({"recipe": to_plain(resolved.file)} if resolved.file else {}),
        "parents": [to_plain(parent) for parent in resolved.parents],
        **({"params": dict(resolved.params)} if resolved.params else {}),
        "overrides": list(resolved.overrides),
        "model": dict(model),
        "environment": dict(environment),
        "seed": seed,
    }
    return {**resolved.document, "lock": block}


def lock_text(document: Mapping[str, Any]) -> str:
    """The text of a lock file."""
    return _HEADER + to_yaml(document)


def write_lock(path: str | Path, document: Mapping[str, Any]) -> Path:
    """Write the lock file at `path`, replacing an older one only once the new one is complete. Raises RecipeError."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(lock_text(document), encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise RecipeError(f"cannot write the lock: {error.strerror}", where=str(target)) from error
    return target
