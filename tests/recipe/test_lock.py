"""Locks: recipes that hold everything a compile was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from dmq_fx.errors import RecipeError
from dmq_fx.recipe import ResolvedRecipe, lock_document, lock_text, resolve, write_lock

MODEL = {"fingerprint": "1f" * 32, "origin": "./model", "class": "UNet2DModel", "sizes": [1, 2], "note": None}
ENVIRONMENT = {"torch": "2.13", "dmq": "0.1.0", "numpy": "1e5"}


@pytest.fixture
def resolved(pass_options: Mapping[str, type]) -> ResolvedRecipe:
    return resolve("ptq/w4a8", overrides=["calibration.samples=2"], pass_options=pass_options)


@pytest.fixture
def lock(resolved: ResolvedRecipe, folder: Path) -> Path:
    document = lock_document(resolved, model=MODEL, environment=ENVIRONMENT, seed=7)
    return write_lock("recipe.lock.yaml", document)


def test_a_lock_holds_the_recipe_and_its_circumstances(lock: Path, resolved: ResolvedRecipe) -> None:
    read = yaml.safe_load(lock.read_text())  # as any YAML reader sees it
    block = read.pop("lock")
    assert read == resolved.document
    assert block["parents"] == [{"name": "ptq/base", "version": "1.0.0", "sha256": resolved.parents[0].sha256}]
    assert block["overrides"] == ["calibration.samples=2"]
    assert (block["sha256"], block["seed"]) == (resolved.digest, 7)
    assert (block["model"], block["environment"]) == (MODEL, ENVIRONMENT)


def test_a_lock_resolves_to_itself(lock: Path, resolved: ResolvedRecipe, pass_options: Mapping[str, type]) -> None:
    again = resolve(lock, pass_options=pass_options)
    assert (again.document, again.digest) == (resolved.document, resolved.digest)
    assert (again.parents, again.overrides) == (resolved.parents, resolved.overrides)
    assert again.recipe.schemes == resolved.recipe.schemes
    relocked = lock_document(again, model=MODEL, environment=ENVIRONMENT, seed=7)
    assert lock_text(relocked) == lock.read_text()


def test_a_lock_with_an_override_records_both(lock: Path, pass_options: Mapping[str, type]) -> None:
    again = resolve(lock, overrides=["calibration.samples=3"], pass_options=pass_options)
    assert again.overrides == ("calibration.samples=2", "calibration.samples=3")
    assert again.recipe.calibration.samples == 3


def test_a_lock_that_was_edited(lock: Path, resolved: ResolvedRecipe, pass_options: Mapping[str, type]) -> None:
    lines = lock.read_text().splitlines()
    lock.write_text(lock.read_text().replace("samples: 2", "samples: 4", 1))
    with pytest.raises(RecipeError) as caught:
        resolve("recipe.lock.yaml", pass_options=pass_options)
    assert caught.value.where == f"recipe.lock.yaml:{lines.index('lock:') + 2}:3"
    assert caught.value.message.startswith("the lock was edited: its recipe has the SHA-256 ")
    assert caught.value.message.endswith(f"and it says {resolved.digest[:12]}…")
    assert caught.value.hint == (
        "use --set to change a locked recipe, or remove the `lock:` block to make it a recipe of your own"
    )


def test_comments_and_order_are_not_edits(lock: Path, pass_options: Mapping[str, type]) -> None:
    document = yaml.safe_load(lock.read_text())
    lock.write_text("# mine\n" + yaml.safe_dump(document, sort_keys=True))
    resolve(lock, pass_options=pass_options)


def test_a_recipe_can_extend_a_lock(lock: Path, folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "r.yaml").write_text("dmq: 1\nname: a/b\nextends: ./recipe.lock.yaml\n")
    resolved = resolve("r.yaml", pass_options=pass_options)
    assert [parent.name for parent in resolved.parents] == ["ptq/w4a8", "ptq/base"]
    assert resolved.recipe.calibration.samples == 2


def test_blocks_that_dmq_did_not_write(folder: Path, pass_options: Mapping[str, type]) -> None:
    head = "dmq: 1\nname: a/b\n"
    cases = {
        "rules: [{scheme: none}]\nlock: {}": "r.yaml:4:7: missing key 'sha256' in lock",
        "rules: [{scheme: none}]\nlock: {sha256: x}": "r.yaml:4:16: sha256 must match ^[0-9a-f]{64}$, got 'x'",
        "extends: ptq/base\nlock: {sha256: x}": "r.yaml:4:16: sha256 must match ^[0-9a-f]{64}$, got 'x'",
        "extends: ptq/base\nlock: {}": "r.yaml:3:10: a lock holds the whole recipe and extends nothing",
    }
    for text, message in cases.items():
        (folder / "r.yaml").write_text(head + text)
        with pytest.raises(RecipeError) as caught:
            resolve("r.yaml", pass_options=pass_options)
        assert str(caught.value) == message


def test_nothing_is_left_beside_a_written_lock(lock: Path, folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["recipe.lock.yaml"]


def test_a_lock_that_cannot_be_written(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere/r\.lock\.yaml: cannot write the lock: No such file or directory"):
        write_lock("nowhere/r.lock.yaml", {"dmq": 1})
