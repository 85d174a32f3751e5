"""Metrics of a model's samples: what is sampled, kept, paired and reported."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dmq_fx.artifact.tensors import load_tensors
from dmq_fx.errors import ArtifactError, DmqError, ModelError
from dmq_fx.evaluation import evaluate
from dmq_fx.models import LoadedModel, load_model
from dmq_fx.pair import open_pair
from dmq_fx.quality import measure
from dmq_fx.quality.features import FeatureExtractor, load_extractor, to_signed_unit, to_uint8
from dmq_fx.quality.measure import Score
from dmq_fx.quality.reference import image_batches
from dmq_fx.quality.samples import IDENTITY, SampleStore, image_stream
from dmq_fx.sampling import Sampler, SamplerOptions

SAMPLING = SamplerOptions(steps=2, batch=4, seed=7)


@pytest.fixture(scope="module")
def loaded(pipeline_folder: Path) -> LoadedModel:
    return load_model(str(pipeline_folder))


class Network(nn.Module):
    """Features of any size of image: one convolution and its mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> SimpleNamespace:
        spatial = self.layer(x)
        pooled = spatial.relu().mean((2, 3))
        return SimpleNamespace(pooled=pooled, spatial=spatial, logits=self.last(pooled))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> FeatureExtractor:
    """An extractor that goes by the name of `cifar10` and reads the tiny pipeline's images of 16x16."""
    extractor = FeatureExtractor("cifar10", Network(), channels=3, size=16, prepare=to_signed_unit)
    monkeypatch.setattr(measure, "load_extractor", lambda name, path, device: extractor)
    return extractor


def whole(batches: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(batches))


def test_images_are_the_same_whatever_the_batch_and_wherever_it_was_interrupted(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    plain = whole(image_stream(Sampler(loaded, SAMPLING), 10))
    assert plain.dtype == torch.uint8 and plain.shape == (10, 3, 16, 16)
    first = image_stream(Sampler(loaded, SAMPLING), 10, store=SampleStore(tmp_path, {"of": "this"}))
    next(first), next(first)
    first.close()
    calls: list[int] = []
    resumed = Sampler(loaded, replace(SAMPLING, batch=3))
    handle = loaded.denoiser.register_forward_hook(lambda module, args, output: calls.append(len(output[0])))
    progress: list[tuple[int, int]] = []
    try:
        store = SampleStore(tmp_path, {"of": "this"})
        images = whole(
            image_stream(resumed, 10, store=store, progress=lambda what, done, total: progress.append((done, total)))
        )
        assert calls == [2, 2]  # images 8 and 9, two steps
        again = whole(image_stream(resumed, 6, store=SampleStore(tmp_path, {"of": "this"})))
        assert calls == [2, 2]
    finally:
        handle.remove()
    assert (images.int() - plain.int()).abs().max() <= 1 and torch.equal(again, images[:6])
    assert progress[-1] == (10, 10) and len(progress) == 3


def test_a_store_is_of_one_thing(tmp_path: Path) -> None:
    one, other = SampleStore(tmp_path, {"of": "this"}), SampleStore(tmp_path, {"of": "that"})
    one.add(0, torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    assert [len(batch) for batch in one.batches()] == [2] and list(other.batches()) == []
    assert json.loads((one.folder / IDENTITY).read_text()) == {"of": "this"}
    (one.folder / IDENTITY).write_text("{}")
    with pytest.raises(ArtifactError, match="holds samples of something else"):
        SampleStore(tmp_path, {"of": "this"})


def test_damaged_and_missing_files_are_sampled_again(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, {})
    for first in (0, 2, 4):
        store.add(first, torch.full((2, 1, 4, 4), first, dtype=torch.uint8))
    path = store.folder / "images-0000002.safetensors"
    path.write_bytes(path.read_bytes()[:60])
    assert len(list(store.batches())) == 1 and not path.exists()
    assert len(list(store.batches())) == 1
    assert not list(store.folder.glob(".*partial*"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot keep samples there"):
        SampleStore(tmp_path / "file", {})


METRICS = "fd-cifar10,sfd-cifar10,precision-cifar10,recall-cifar10,psnr"


def test_metrics_of_an_artifact(artifact: Path, read: FeatureExtractor, tmp_path: Path) -> None:
    """Against full precision's own images of other noise, twice, with full precision's own scores."""
    options: dict[str, Any] = {"samples": 12, "steps": 2, "batch": 5, "samples_dir": tmp_path}
    found = evaluate(artifact, metrics=METRICS, reference="full-precision", repeats=2, full_precision=True, **options)
    quality = found.quality
    assert quality is not None and list(quality.scores) == METRICS.split(",")
    assert quality.full_precision is not None and list(quality.full_precision) == METRICS.split(",")[:-1]
    assert all(len(score.values) == 2 and score.std is not None for score in quality.scores.values())
    assert quality.reference == "full-precision" and quality.reference_images == {"cifar10": 12}
    assert quality.extractors == {"cifar10": read.digest}
    assert json.loads(json.dumps(found.to_json()))["quality"]["scores"]["psnr"]["mean"] > 20
    stores = {path.name for path in tmp_path.iterdir()}
    assert len(stores) == 5  # two of the artifact; of full precision those, and the reference
    pair = open_pair(artifact)
    first = SamplerOptions(steps=2, batch=5, seed=10_000)
    exact, ours = (
        torch.cat([to_uint8(batch) for batch in Sampler(pair.reference, first).run(12, denoiser)]).double() / 255
        for denoiser in (None, pair.quantized)
    )
    expected = -10 * math.log10(float((exact - ours).square().mean()))
    assert quality.scores["psnr"].values[0] == pytest.approx(expected, abs=0.05)
    evaluate(artifact, metrics="fd-cifar10", reference="full-precision", repeats=2, **options)
    assert {path.name for path in tmp_path.iterdir()} == stores


def test_a_folder_of_images_as_reference(artifact: Path, read: FeatureExtractor, tmp_path: Path) -> None:
    """The model's own images, as PNG files, are at no distance from themselves."""
    kept, folder = tmp_path / "kept", tmp_path / "images"
    folder.mkdir()
    options: dict[str, Any] = {"samples": 8, "steps": 2, "samples_dir": kept}
    evaluate(artifact, metrics="fd-cifar10", reference="full-precision", **options)
    store = next(path for path in kept.iterdir() if "artifact" in json.loads((path / IDENTITY).read_text()))
    images = load_tensors(store / "images-0000000.safetensors")["images"]
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    quality = evaluate(artifact, metrics="fd-cifar10,precision-cifar10", reference=folder, **options).quality
    assert quality is not None and quality.reference == "images"
    assert quality.scores["fd-cifar10"].mean == pytest.approx(0, abs=1e-6)
    assert quality.scores["precision-cifar10"].mean == 1.0


def save_noise(folder: Path, count: int, size: tuple[int, int] = (16, 16)) -> Path:
    """A folder of images in colour; size: (width, height)."""
    folder.mkdir()
    for index in range(count):
        channels = [Image.effect_noise(size, 20 + 9 * index) for _ in range(3)]
        Image.merge("RGB", channels).save(folder / f"{index}.png")
    return folder


def test_weights_of_lpips_are_there_before_anything_is_sampled(
    artifact: Path, tmp_path: Path, alexnet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(weights: None) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sys.modules["torchvision"].models, "alexnet", unreachable)
    with pytest.raises(ModelError, match="LPIPS's weights cannot be fetched: no route to host"):
        evaluate(artifact, metrics="psnr,lpips", samples=2, steps=1, samples_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_reference_of_too_few_images_is_refused_before_anything_is_sampled(
    artifact: Path, read: FeatureExtractor, tmp_path: Path
) -> None:
    folder, kept = save_noise(tmp_path / "images", 4), tmp_path / "kept"
    with pytest.raises(DmqError, match=r"^images: 'recall-cifar10' needs 5 images or more, and the reference has 4"):
        evaluate(artifact, metrics="fd-cifar10,recall-cifar10", reference=folder, samples=8, samples_dir=kept)
    assert not kept.exists()


def test_a_reference_is_brought_to_the_size_that_latents_decode_to(
    text_to_image_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under an extractor of any size, such as Inception."""
    sizes: set[tuple[int, ...]] = set()

    def prepare(images: Tensor) -> Tensor:
        sizes.add(tuple(images.shape[2:]))
        return to_signed_unit(images)

    extractor = FeatureExtractor("cifar10", Network(), channels=3, size=None, prepare=prepare)
    monkeypatch.setattr(measure, "load_extractor", lambda name, path, device: extractor)
    folder = save_noise(tmp_path / "images", 3, (40, 20))
    options: dict[str, Any] = {"samples": 2, "steps": 1, "prompts": ["a cat"]}
    quality = evaluate(text_to_image_artifact, metrics="fd-cifar10", reference=folder, **options).quality
    assert quality is not None and quality.reference_images == {"cifar10": 3} and sizes == {(16, 16)}


@pytest.mark.slow
def test_metrics_on_inception(artifact: Path, inception_weights: Path, tmp_path: Path) -> None:
    """With random weights, against the formula on low-rank covariances: tr (C C')^(1/2) is a nuclear norm."""
    folder, kept = save_noise(tmp_path / "images", 5), tmp_path / "kept"
    names = ("fid", "precision", "recall")
    options: dict[str, Any] = {"reference": folder, "feature_extractor": inception_weights, "samples_dir": kept}
    quality = evaluate(artifact, metrics=names, samples=6, steps=1, **options).quality
    assert quality is not None and tuple(quality.scores) == names and quality.reference_images == {"inception": 5}
    extractor = load_extractor("inception", inception_weights)
    assert quality.extractors == {"inception": extractor.digest}
    (store,) = kept.iterdir()
    sampled = load_tensors(store / "images-0000000.safetensors")["images"]
    real = next(image_batches(folder, channels=3))
    ours, theirs = (extractor(images).pooled.double() for images in (sampled, real))
    a, b = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (ours, theirs))
    means = (ours.mean(0) - theirs.mean(0)).square().sum()
    expected = means + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    assert quality.scores["fid"].mean == pytest.approx(float(expected), rel=1e-4)
    assert all(quality.scores[name].mean in [k / 30 for k in range(31)] for name in ("precision", "recall"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "fid"}, "'fid' needs images to compare with"),
        ({"metrics": "fdmnist"}, "unknown metric 'fdmnist'"),
        ({"metrics": "clip"}, "'clip' needs prompts"),
        ({"metrics": "psnr", "reference": "full-precision"}, "no metric that was asked for compares"),
        ({"reference": "x"}, "a reference is for metrics"),
        ({"repeats": 2}, "--repeats: repeats are for metrics"),
        ({"clip_model": "folder"}, "--clip-model: a CLIP model is for metrics"),
        ({"full_precision": True}, "--full-precision: full precision's scores are for metrics"),
        ({"samples_dir": "kept"}, "--samples-dir: kept images are for metrics"),
        ({"metrics": "is-mnist", "samples": 19}, "'is-mnist' needs 20 images or more, not 19"),
        ({"metrics": "lpips"}, "LPIPS needs torchvision"),
        ({"metrics": "fd-mnist", "reference": "full-precision", "subset": "test"}, "have no subset"),
        ({"metrics": "fid", "reference": "gone.zip"}, "gone.zip: there is no such file"),
        ({"metrics": "is-mnist", "feature_extractor": "w.pth"}, "no metric that was asked for is taken on Inception"),
        (
            {"metrics": "psnr", "subset": "test"},
            "--subset: 'test' is a folder inside of a reference, and there is none",
        ),
        ({"metrics": "psnr", "clip_model": "folder"}, "--clip-model: no metric that was asked for is taken on CLIP"),
        ({"scheduler": "heun"}, "scheduler: unknown scheduler 'heun'\n  hint: known: pipeline, ddim, "),
        ({"scheduler": "dpmsolver"}, "unknown scheduler 'dpmsolver'\n  hint: did you mean 'dpmsolver\\+\\+'"),
        ({"samples": 0}, "--samples: samples is 0, and has to be a whole number, 1 or more"),
        ({"batch": 0}, "--batch: batch is 0, and has to be"),
        ({"repeats": 0, "metrics": "psnr"}, "--repeats: repeats is 0, and has to be"),
        ({"steps": -1}, "--steps: steps is -1, and has to be"),
        ({"samples": 2.5}, "samples is 2.5, and has to be a whole number"),
        ({"prompts": "a cat"}, "prompts are a list of texts, and received 'a cat'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmq_fx.quality.libraries.find_spec", lambda name: None)  # whether torchvision is there or not
    with pytest.raises(DmqError, match=message):
        evaluate("no-such-artifact", **options)


def test_scores_of_repeats() -> None:
    assert (Score((1.0, 3.0)).mean, Score((1.0, 3.0)).std) == (2.0, pytest.approx(math.sqrt(2)))
    assert Score((2.0,)).std is None and Score((None, 3.0)).mean is None
