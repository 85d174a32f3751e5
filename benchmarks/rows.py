"""Rows of tables that are kept: scores under digests of the recipe, the model and all that they were measured with."""

from __future__ import annotations

import argparse
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from baselines import artifact

FULL_PRECISION = "full precision"
SETTING_LENGTH = 12


def key_of(args: argparse.Namespace, recipe: str | None) -> str:
    """The model's name and digest, the recipe's with its overrides, or `full precision`; the backend; the setting's."""
    parts = [args.model, model_digest(args.model), FULL_PRECISION if recipe is None else recipe_digest(args, recipe)]
    parts += [args.backend] if recipe is not None and args.backend else []
    text = json.dumps(setting(args, recipe), sort_keys=True)
    return " ".join([*parts, hashlib.sha256(text.encode()).hexdigest()[:SETTING_LENGTH]])


def recipe_digest(args: argparse.Namespace, recipe: str) -> str:
    from dmq_fx.compiler import resolve_recipe

    return resolve_recipe(recipe, overrides_of(args)).digest


def overrides_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The budget, and what a script that uses these functions sets beside it."""
    return (f"budget={args.budget}", *getattr(args, "overrides", ()))


@cache
def model_digest(model: str) -> str:
    from dmq_fx.models import fingerprint, load_model

    return fingerprint(load_model(model).denoiser)


def metric_names(args: argparse.Namespace) -> tuple[str, ...]:
    if args.extractor == "inception":
        return ("fid", "sfid", "is", "precision", "recall")
    return tuple(f"{stem}-{args.extractor}" for stem in ("fd", "sfd", "is", "precision", "recall"))


def setting(args: argparse.Namespace, recipe: str | None) -> dict[str, Any]:
    """What a row was measured with; the backend is none of full precision's concern, repeats are its alone."""
    names = ("samples", "steps", "seed", "subset", "device", "budget", "compile")
    found = {name: getattr(args, name) for name in names}
    found |= {"reference": Path(args.reference).name, "metrics": list(metric_names(args))}
    found |= {"reference_sha256": file_digest(args.reference), "extractor": extractor_digest(args.extractor)}
    if recipe is None:
        found["repeats"] = args.repeats
    elif args.backend:
        found["backend"] = args.backend
    return found


@cache
def file_digest(path: str) -> str | None:
    """SHA-256 of an archive or of stored statistics; None of a folder."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else None


@cache
def extractor_digest(name: str) -> str:
    from dmq_fx.quality.features import load_extractor

    return load_extractor(name).digest


def read_records(args: argparse.Namespace) -> dict[str, Any]:
    return json.loads(args.records.read_text()) if args.records.exists() else {}


def known_row(args: argparse.Namespace, recipe: str | None) -> dict[str, Any] | None:
    """What was measured before under the same setting; None for nothing, or if another artifact of it is there now."""
    known = read_records(args).get(key_of(args, recipe))
    if known is None or recipe is None:
        return known
    manifest = made_of(args, recipe)
    return known if manifest is None or manifest["digest"] == known["artifact"] else None


def made_of(args: argparse.Namespace, recipe: str) -> dict[str, Any] | None:
    """The manifest of the artifact in the output folder, if it is of this very recipe and model."""
    path = artifact(args, recipe) / "manifest.json"
    if not path.exists():
        return None
    manifest = json.loads(path.read_text())
    of = manifest["content"]
    wanted = (recipe_digest(args, recipe), model_digest(args.model))
    return manifest if (of["recipe"]["digest"], of["model"]["fingerprint"]) == wanted else None


def keep_row(args: argparse.Namespace, recipe: str | None, found: dict[str, Any]) -> None:
    """Add a row to the records; they are read again, as another process may have added some."""
    args.records.parent.mkdir(parents=True, exist_ok=True)
    records = read_records(args) | {key_of(args, recipe): found}
    partial = args.records.with_suffix(".partial")
    partial.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    partial.replace(args.records)
