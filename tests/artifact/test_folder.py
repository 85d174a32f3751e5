"""An artifact as a whole: what is in it, that it loads to the same numbers, and what is said when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import dmq_fx
from dmq_fx.artifact.files import FILES, STATISTICS
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.artifact.tensors import load_tensors
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.errors import ArtifactError, BackendError


def test_files_of_an_artifact(artifact: Path) -> None:
    assert {file.name for file in artifact.iterdir()} == {*FILES, STATISTICS, "manifest.json"}
    opened = open_artifact(artifact)
    assert opened.manifest.content["recipe"]["name"] == "ptq/w8a8"
    assert opened.config["_class_name"] == "UNet2DModel"
    assert "<html" in (artifact / "report.html").read_text()


def test_nothing_in_it_names_a_folder_of_this_machine(artifact: Path, pipeline_folder: Path) -> None:
    """The manifest tells the model's origin as the user gave it; nothing else may know where things were."""
    for file in artifact.iterdir():
        text = file.read_bytes()
        if file.name in ("manifest.json", "recipe.lock.yaml"):
            text = text.replace(str(pipeline_folder).encode(), b"")
        assert str(Path.cwd()).encode() not in text and b"/tmp/" not in text, file.name


@pytest.mark.parametrize("recipe", ["ptq/w8a8", "ptq/w4a6", "weight-only/w4"])
def test_loaded_graph_is_the_compiled_one(
    recipe: str, pipeline_folder: Path, tmp_path: Path, cache: CalibrationCache, fast: tuple[str, ...]
) -> None:
    """Trace, rewrites and tensors come back from the files to the same output, bit for bit."""
    from dmq_fx import compiler

    kept = []
    original = compiler.save_program

    def keep(program, *args, **kwargs):  # type: ignore[no-untyped-def]
        kept.append(program)
        return original(program, *args, **kwargs)

    patch = pytest.MonkeyPatch()
    patch.setattr(compiler, "save_program", keep)
    try:
        dmq_fx.compile(recipe, model=str(pipeline_folder), output=tmp_path / "a", overrides=fast, cache=cache)
    finally:
        patch.undo()
    loaded = dmq_fx.load(tmp_path / "a")
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([999, 500, 3])
    with torch.no_grad():
        assert torch.equal(loaded(x, t).sample, kept[0].graph_module(x, t)[0])


def test_same_seed_same_digest(pipeline_folder: Path, tmp_path: Path, artifact: Path, fast: tuple[str, ...]) -> None:
    """Compiled twice, from an empty cache the second time: every byte is the same. Another seed changes them."""
    digests = {open_artifact(artifact).manifest.digest}
    for name, seed in (("again", 0), ("other", 1)):
        fresh = CalibrationCache(tmp_path / f"cache-{name}")
        result = dmq_fx.compile(
            "ptq/w8a8", model=str(pipeline_folder), output=tmp_path / name, overrides=fast, seed=seed, cache=fresh
        )
        digests.add(result.digest)
    again, other = open_artifact(tmp_path / "again"), open_artifact(tmp_path / "other")
    first = open_artifact(artifact)
    for file in ("model.safetensors", "quantization.json", "config.json", "report.json"):
        assert first.manifest.record(file) == again.manifest.record(file), file
    assert first.manifest.record("model.safetensors") != other.manifest.record("model.safetensors")


def test_lock_compiles_to_the_same_artifact(
    pipeline_folder: Path, tmp_path: Path, artifact: Path, cache: CalibrationCache
) -> None:
    dmq_fx.compile(artifact / "recipe.lock.yaml", model=str(pipeline_folder), output=tmp_path / "b", cache=cache)
    first, second = open_artifact(artifact), open_artifact(tmp_path / "b")
    assert first.manifest.digest == second.manifest.digest


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_integers_occupy_their_bits(
    bits: int, pipeline_folder: Path, tmp_path: Path, cache: CalibrationCache, fast: tuple[str, ...]
) -> None:
    """The tensors take bits x weights + scales + the rest, to the byte; the file within 3 % for a real model's size."""
    overrides = (f"schemes.body.weight.bits={bits}", *fast)
    dmq_fx.compile("ptq/w4a8", model=str(pipeline_folder), output=tmp_path / "a", overrides=overrides, cache=cache)
    opened = open_artifact(tmp_path / "a")
    stored = load_tensors(tmp_path / "a" / "model.safetensors")
    for site in opened.sites["sites"]:
        if "precision" not in site:
            continue
        wanted = opened.sites["schemes"][site["precision"]]["weight"]["bits"]
        count = torch.Size(site["shape"]).numel()
        assert stored[f"{site['name']}.weight"].numel() == -(-count // 8) * wanted
        assert stored[f"{site['name']}.weight"].dtype == torch.uint8


def test_missing_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact at"):
        dmq_fx.load(tmp_path / "nowhere")


def test_tampered_artifact(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="changed after it was written"):
        dmq_fx.load(copy)


def test_truncated_artifact(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    data = (copy / "quantization.json").read_bytes()
    (copy / "quantization.json").write_bytes(data[:100])
    with pytest.raises(ArtifactError, match=rf"truncated: expected {len(data)} bytes, got 100"):
        dmq_fx.load(copy)


def test_newer_artifact(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format": 7}))
    with pytest.raises(ArtifactError, match=r"artifact format 7 is newer than this dmq understands \(1\)"):
        dmq_fx.load(copy)


def test_graph_that_changed_since(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmq_fx.artifact.folder.graph_fingerprint", lambda module: "another")
    with pytest.raises(ArtifactError, match="graph is not the one that was compiled") as caught:
        dmq_fx.load(artifact)
    assert "diffusers 0." in str(caught.value)


def test_unknown_backend(artifact: Path) -> None:
    with pytest.raises(BackendError, match="unknown backend 'fake_quantt'") as caught:
        dmq_fx.load(artifact, backend="fake_quantt")
    assert "did you mean 'fake_quant'?" in str(caught.value)
