"""Sources on the hub, without a network: what would be fetched, and what is said when it cannot be."""

import shutil
from pathlib import Path
from unittest.mock import MagicMock

import diffusers
import huggingface_hub
import pytest
from catalog import tiny_model
from diffusers import DDIMPipeline, DDIMScheduler
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError

from dmq_fx.errors import ModelError
from dmq_fx.models import load_denoiser_on_meta, load_model
from dmq_fx.models.hub import is_hub_id


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A repository `org/ddpm` in a local folder; the list collects what is asked for."""
    repository = tmp_path / "repository"
    DDIMPipeline(tiny_model("ddpm"), DDIMScheduler()).save_pretrained(repository)
    calls: list[tuple] = []

    def fetch_one(name: str, path: str, revision: str | None = None) -> str:
        calls.append((name, path, revision))
        if not (repository / path).is_file():
            raise RemoteEntryNotFoundError("404", response=MagicMock())
        return str(repository / path)

    def fetch_all(name: str, **options: object) -> str:
        calls.append((name, "*", options))
        return str(repository)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch_one)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch_all)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", staticmethod(fetch_all))
    return calls


def test_ids() -> None:
    assert is_hub_id("google/ddpm-cifar10-32")
    assert is_hub_id("org/name@v1.0")
    assert not is_hub_id("./models/x")
    assert not is_hub_id("a/b/c")
    assert not is_hub_id("name")


def test_meta_fetches_two_small_files(hub: list[tuple]) -> None:
    loaded = load_denoiser_on_meta("org/ddpm@main")
    assert loaded.class_name == "UNet2DModel"
    assert hub == [("org/ddpm", "model_index.json", "main"), ("org/ddpm", "unet/config.json", "main")]


def test_pipeline_is_fetched_as_safetensors_without_code(hub: list[tuple]) -> None:
    loaded = load_model("org/ddpm")
    assert isinstance(loaded.pipeline, DDIMPipeline)
    options = hub[-1][2]
    assert options["use_safetensors"] is True
    assert options["trust_remote_code"] is False


def test_repository_of_one_denoiser(hub: list[tuple], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "model_index.json").unlink()
    for path in (repository / "unet").iterdir():
        path.rename(repository / path.name)
    shutil.rmtree(repository / "unet")
    assert load_model("org/ddpm").pipeline is None
    assert hub[-1][2]["allow_patterns"] == ["config.json", "*.safetensors", "*.safetensors.index*.json"]
    assert load_denoiser_on_meta("org/ddpm").component == "unet"


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (RepositoryNotFoundError("404", response=MagicMock()), "no such model\n  hint: it is neither a folder here"),
        (LocalEntryNotFoundError("offline"), "cannot be fetched from the hub: offline\n  hint: there is no folder"),
        (ConnectionError("no route"), "cannot be fetched from the hub: no route"),
    ],
)
def test_errors(monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str) -> None:
    def fail(*_: object, **__: object) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    for load in (load_model, load_denoiser_on_meta):
        with pytest.raises(ModelError, match=message) as caught:
            load("org/name")
        assert caught.value.where == "org/name"


def test_repository_without_a_config(hub: list[tuple], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "repository")
    with pytest.raises(ModelError, match=r"org/ddpm: the repository has no file 'config\.json'"):
        load_denoiser_on_meta("org/ddpm")
