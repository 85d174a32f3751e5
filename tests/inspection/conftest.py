"""An artifact with every kind of fold, and artifacts whose contents a test makes up."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import dmq_fx
from dmq_fx.artifact.container import read_manifest, write_artifact
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.inspection import Inspected, inspect_artifact

FOLDED = """dmq: 1
name: test/folded
extends: ptq/w4a8@^1
passes:
  - split: {}
  - smoothquant: {}
  - pts: {per_timestep: true}
"""


@pytest.fixture(scope="session")
def folded(
    tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path, cache: CalibrationCache, fast: tuple[str, ...]
) -> Path:
    """4-bit weights with gamma, shifts per timestep and split skip connections."""
    folder = tmp_path_factory.mktemp("folded")
    recipe = folder / "folded.yaml"
    recipe.write_text(FOLDED)
    dmq_fx.compile(recipe, model=str(pipeline_folder), output=folder / "out", overrides=fast, cache=cache)
    return folder / "out"


@pytest.fixture(scope="session")
def found(folded: Path) -> Inspected:
    return inspect_artifact(folded)


Edit = Callable[[Path, Path, Mapping[str, Any]], Path]


@pytest.fixture(scope="session")
def edited() -> Edit:
    """A copy of an artifact with other contents, its hashes in order. None for a file leaves it out."""

    def edit(source: Path, target: Path, changes: Mapping[str, Any]) -> Path:
        manifest = read_manifest(source)
        files = {record.name: (source / record.name).read_bytes() for record in manifest.files}
        content = {**manifest.content, **changes.get("manifest", {})}
        for name, change in changes.items():
            if name == "manifest":
                continue
            files[name] = change if isinstance(change, bytes) or change is None else json.dumps(change).encode()
        write_artifact(target, {n: b for n, b in files.items() if b is not None}, content, overwrite=False)
        return target

    return edit


HOSTILE = "<script>alert(1)</script>[red]x[/]\x1b[31m\u202e"


PROMPT = "</pre></script><script>alert(3)</script>"


@pytest.fixture(scope="session")
def hostile(folded: Path, edited: Edit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose first site, recipe, model and prompt a page or terminal might act on."""
    table = json.loads((folded / "quantization.json").read_text())
    report = json.loads((folded / "report.json").read_text())
    old = table["sites"][0]["name"]
    table["sites"][0] |= {"name": HOSTILE, "roles": ["</script><img src=x onerror=alert(2)>"]}
    for kind in ("local_sqnr_db", "accumulated_sqnr_db"):
        if old in report["errors"][kind]:
            report["errors"][kind][HOSTILE] = report["errors"][kind].pop(old)
    manifest = read_manifest(folded)
    recipe = {**manifest.content["recipe"], "name": HOSTILE}
    model = {**manifest.content["model"], "origin": f"{HOSTILE}/model"}
    lock = (folded / "recipe.lock.yaml").read_text()
    assert lock.count("prompts: []") == 1
    changes: dict[str, Any] = {
        "quantization.json": table,
        "report.json": report,
        "manifest": {"recipe": recipe, "model": model},
    }
    changes["recipe.lock.yaml"] = lock.replace("prompts: []", f"prompts: ['{PROMPT}']").encode()
    return edited(folded, tmp_path_factory.mktemp("hostile") / "out", changes)
