"""Rows of tables: kept under all that they were measured with, and never of an artifact that another recipe made."""

from __future__ import annotations

import importlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from dmq_fx.compiler import resolve_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RECIPE = "weight-only/w4"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = importlib.import_module("rows")
    monkeypatch.setattr(found, "model_digest", lambda model: "of the model")
    return found


@pytest.fixture
def args(tmp_path: Path) -> Namespace:
    (tmp_path / "images.tar").write_bytes(b"images")
    return Namespace(
        model="m",
        extractor="mnist",
        reference=str(tmp_path / "images.tar"),
        subset="test",
        samples=10,
        steps=2,
        seed=0,
        repeats=2,
        device="cpu",
        compile=False,
        budget="quick",
        backend="x86_int8",
        output=tmp_path,
        records=tmp_path / "records.json",
    )


def make(args: Namespace, digest: str, artifact: str) -> None:
    """An artifact as far as the rows look at it."""
    folder = args.output / RECIPE.replace("/", "-")
    folder.mkdir(exist_ok=True)
    content = {"recipe": {"digest": digest}, "model": {"fingerprint": "of the model"}}
    (folder / "manifest.json").write_text(json.dumps({"digest": artifact, "content": content}))


def test_a_row_is_found_again_under_the_same_setting_only(rows: Any, args: Namespace) -> None:
    for recipe in (RECIPE, None):
        rows.keep_row(args, recipe, {"artifact": "a", "of": recipe})
    assert rows.known_row(args, RECIPE)["of"] == RECIPE
    others: list[dict[str, Any]] = [{"samples": 11}, {"seed": 1}, {"device": "cuda"}, {"compile": True}]
    others += [{"budget": "full"}, {"extractor": "cifar10"}]
    for other in others:
        assert rows.known_row(Namespace(**{**vars(args), **other}), RECIPE) is None
    # full precision has no backend, and sets of noise of its own
    assert rows.known_row(Namespace(**{**vars(args), "backend": None}), None)["of"] is None
    assert rows.known_row(Namespace(**{**vars(args), "backend": None}), RECIPE) is None
    assert rows.known_row(Namespace(**{**vars(args), "repeats": 4}), None) is None
    changed = args.output / "changed.tar"
    changed.write_bytes(b"other images")
    assert rows.known_row(Namespace(**{**vars(args), "reference": str(changed)}), RECIPE) is None
    assert len(json.loads(args.records.read_text())) == 2


def test_an_artifact_of_another_recipe_is_none_of_this_one(rows: Any, args: Namespace) -> None:
    rows.keep_row(args, RECIPE, {"artifact": "a"})
    own = resolve_recipe(RECIPE, ("budget=quick",)).digest
    make(args, "of a recipe that was edited since", "b")
    assert rows.made_of(args, RECIPE) is None and rows.known_row(args, RECIPE) is not None
    make(args, own, "a")
    assert rows.made_of(args, RECIPE)["digest"] == "a" and rows.known_row(args, RECIPE) is not None
    make(args, own, "another compile")
    assert rows.known_row(args, RECIPE) is None
