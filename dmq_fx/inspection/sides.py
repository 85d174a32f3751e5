"""What can be compared: recipes, lock files and artifacts, brought to one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dmq_fx.errors import DmqError, RecipeError
from dmq_fx.inspection.inspected import Inspected, inspect_artifact
from dmq_fx.inspection.rows import UNMEASURED

DEFAULT_MODEL = "builtin:ddpm-mnist"


@dataclass(frozen=True)
class Side:
    """One of the two.

    kind: `recipe`, `lock` or `artifact`. document: the resolved recipe as plain data. rows: its sites; None if there
    is no model to plan for, `note` says why. totals: of the plan. errors: as in report.json. files: SHA-256 by name.
    """

    label: str
    kind: str
    document: dict[str, Any]
    rows: Sequence[Mapping[str, Any]] | None = None
    slots: int | None = None
    totals: Mapping[str, Any] = field(default_factory=dict)
    errors: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    bytes: int | None = None
    note: str = ""


def load_sides(a: str, b: str, *, model: str | None = None) -> tuple[Side, Side]:
    """Read both; raises RecipeError or ArtifactError, and DmqError for a model that nothing would be planned for.

    model: what recipes and locks are planned for. Without it, the model of the lock or of the other side's lock or
    artifact, else the one that `dmq plan` takes.
    """
    folders = {text: inspect_artifact(text) for text in (a, b) if Path(text).is_dir()}
    if model is not None and {a, b} == folders.keys():
        raise DmqError("artifacts are compared as they were compiled, for no other model", where="--model")
    locks = {text: _lock_origin(text) for text in (a, b) if text not in folders}
    origins = [found.model["origin"] for found in folders.values()] + [origin for origin in locks.values() if origin]
    wanted = {text: model or locks.get(text) or next(iter(origins), DEFAULT_MODEL) for text in (a, b)}
    first, second = (
        _artifact(text, folders[text])
        if text in folders
        else _recipe(text, wanted[text], bool(locks[text]), asked=model is not None)
        for text in (a, b)
    )
    return first, second


def _artifact(label: str, found: Inspected) -> Side:
    document = yaml.safe_load(found.lock_path.read_text("utf-8"))
    return Side(
        label=label,
        kind="artifact",
        document={key: value for key, value in document.items() if key != "lock"},
        rows=found.rows,
        slots=found.slots,
        totals=found.report["totals"],
        errors=found.errors,
        files={record.name: record.sha256 for record in found.manifest.files},
        bytes=found.bytes,
    )


def _recipe(label: str, model: str, is_lock: bool, *, asked: bool) -> Side:
    from dmq_fx.compiler import plan, resolve_recipe

    try:
        resolved = resolve_recipe(label)
    except RecipeError as error:
        if Path(label).exists() or type(error) is not RecipeError:  # it was found, and is not valid
            raise
        hint = f"{error.hint or 'check the name'}; an artifact's folder is not there either"
        raise RecipeError(error.message, where=error.where, hint=hint) from error
    side = Side(label, "lock" if is_lock else "recipe", resolved.document)
    try:
        made = plan(label, model=model)
    except RecipeError:
        raise
    except DmqError as error:
        if asked:
            raise
        return Side(side.label, side.kind, side.document, note=f"{label} was not planned for {model}: {error.message}")
    rows = [{**UNMEASURED, **planned.to_json()} for planned in made.sites]
    steps = resolved.recipe.calibration.steps
    return Side(side.label, side.kind, side.document, rows=rows, slots=steps, totals=asdict(made.totals))


def _lock_origin(reference: str) -> str | None:
    """Where the model of a lock file came from; None for anything else."""
    path = Path(reference)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return None
    from dmq_fx.recipe.source import read_source

    lock = read_source(path).tree.get("lock")
    model = lock.get("model") if lock is not None and lock.is_mapping else None
    origin = model.plain().get("origin") if model is not None and model.is_mapping else None
    return origin if isinstance(origin, str) else None
