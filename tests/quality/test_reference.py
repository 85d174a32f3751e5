"""Images of a reference, out of folders and archives; and what is said about those that hold none."""

from __future__ import annotations

import importlib.util
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dmq_fx.errors import DmqError
from dmq_fx.quality import image_files as image_files_module
from dmq_fx.quality.features import FeatureExtractor
from dmq_fx.quality.image_files import image_files
from dmq_fx.quality.reference import fit, image_batches, reference_name, reference_statistics
from dmq_fx.quality.statistics import save_statistics

ROOT = Path(__file__).parents[2]


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "L", seed: int = 0) -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


@pytest.fixture(scope="module")
def files(digits: Tensor) -> dict[str, bytes]:
    """Two classes of a training and a test set."""
    splits = {"test": 10, "train": 20}
    names = [f"{split}/{index % 2}/{index:03}.png" for split, count in splits.items() for index in range(count)]
    return {name: encode(Image.fromarray(digit[0].numpy())) for name, digit in zip(sorted(names), digits, strict=False)}


@pytest.fixture(scope="module")
def sources(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same files as a folder and as archives."""
    root = tmp_path_factory.mktemp("sources")
    for name, data in files.items():
        path = root / "digits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with zipfile.ZipFile(root / "digits.zip", "w") as archive:
        for name in reversed(files):
            archive.writestr(name, files[name])
    for suffix in ("tar", "tar.gz", "tar.xz"):
        write_tar(root / f"digits.{suffix}", files, f"w:{suffix[4:]}")
    return {path.name: path for path in root.iterdir()}


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w:") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


SOURCES = ["digits", "digits.zip", "digits.tar", "digits.tar.gz", "digits.tar.xz"]


@pytest.mark.parametrize("name", SOURCES)
def test_a_folder_is_as_good_as_an_archive(name: str, sources: dict[str, Path], files: dict[str, bytes]) -> None:
    assert dict(image_files(sources[name])) == files


@pytest.mark.parametrize("name", SOURCES)
def test_statistics_of_a_folder_are_those_of_an_archive(
    name: str, sources: dict[str, Path], tiny: FeatureExtractor, digits: Tensor
) -> None:
    found = reference_statistics(sources[name], tiny, batch=7)
    torch.testing.assert_close(found.features, tiny(digits[:30]).pooled)
    assert (found.count, found.source) == (30, name)


@pytest.mark.parametrize("name", ["digits", "digits.tar"])
def test_a_subset_is_a_folder_inside(name: str, sources: dict[str, Path]) -> None:
    def names(subset: str) -> list[str]:
        return [inside for inside, _ in image_files(sources[name], subset)]

    assert len(names("test")) == 10 and all(inside.startswith("test/") for inside in names("test"))
    assert len(names("1")) == 15
    assert names("train/1") == [inside for inside in names("train") if inside.startswith("train/1/")] != []
    with pytest.raises(DmqError, match=r"no images of a subset 'tset'\n  hint: did you mean 'test'"):
        names("tset")
    with pytest.raises(DmqError, match="hint: folders that hold images: 0, 1, test, train"):
        names("validation")


def test_a_name_holds_no_path_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert reference_name(tmp_path / "a" / "mnist.tar.xz", "test") == "mnist.tar.xz/test"
    assert reference_name(".") == tmp_path.name
    assert reference_name("/") == "images"


def test_images_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    files = {"1.png": encode(noise(32, 32)), "2.png": b"broken", "3.png": encode(noise(32, 32))}
    batches = image_batches(write_tar(tmp_path / "a.tar", files), channels=1, batch=1)
    assert next(batches).shape == (1, 1, 32, 32)
    with pytest.raises(DmqError, match=r"a.tar: 2.png: the image cannot be decoded\n  hint: copy it again"):
        next(batches)


def test_mnist_is_padded_as_its_model_and_classifier_were_trained_on(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("train_reference_model", ROOT / "examples/train_reference_model.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    source = write_tar(tmp_path / "mnist.tar", {f"train/{k}/1.png": encode(noise(28, 28, seed=k)) for k in range(3)})
    trained_on, _ = example.load_images(source, "train", 1, 32)
    assert torch.equal(torch.cat(list(image_batches(source, channels=1, size=(32, 32)))), trained_on)
    assert trained_on[:, :, :2].max() == 0 and trained_on[:, :, 2:30, 2:30].float().mean() > 100


def test_other_sizes_are_cropped_and_resized_with_lanczos(tmp_path: Path) -> None:
    pictures = [noise(64, 64, "RGB"), noise(40, 20, "RGB"), noise(28, 28, "RGB"), noise(20, 20)]
    source = write_tar(tmp_path / "a.tar", {f"{k}.png": encode(picture) for k, picture in enumerate(pictures)})
    (images,) = image_batches(source, channels=3, size=(32, 32))
    lanczos = Image.Resampling.LANCZOS
    expected = [ImageOps.fit(picture, (32, 32), lanczos).convert("RGB") for picture in pictures]
    assert torch.equal(images, torch.stack([torch.from_numpy(np.array(e)).permute(2, 0, 1) for e in expected]))
    assert np.array_equal(np.array(expected[0]), np.array(pictures[0].resize((32, 32), lanczos)))
    ends = Image.new("L", (40, 20))
    ends.paste(255, (0, 0, 6, 20))
    ends.paste(255, (34, 0, 40, 20))
    assert fit(ends, (32, 32)).getextrema() == (0, 0)  # which are cropped
    (wide,) = image_batches(write_tar(tmp_path / "b.tar", {"1.png": encode(noise(40, 40))}), channels=1, size=(16, 24))
    assert wide.shape == (1, 1, 16, 24)


def test_images_keep_their_sizes_where_none_is_wanted(tmp_path: Path) -> None:
    sizes = [(8, 8), (8, 8), (6, 8), (8, 8)]
    source = write_tar(tmp_path / "a.tar", {f"{k}.png": encode(noise(*size)) for k, size in enumerate(sizes)})
    assert [list(batch.shape) for batch in image_batches(source, channels=3)] == [
        [2, 3, 8, 8],
        [1, 3, 8, 6],
        [1, 3, 8, 8],
    ]


def test_grey_is_grey_however_it_is_stored(tmp_path: Path) -> None:
    grey = noise(32, 32)
    stored = {"1.png": grey, "2.png": grey.convert("RGB"), "3.bmp": grey, "4.png": grey.convert("LA")}
    kinds = {".png": "PNG", ".bmp": "BMP"}
    source = write_tar(tmp_path / "a.tar", {name: encode(image, kinds[name[1:]]) for name, image in stored.items()})
    (images,) = image_batches(source, channels=1)
    assert all(np.array_equal(image[0], np.array(grey)) for image in images)


def broken(kind: str, folder: Path) -> Path:
    picture = encode(noise(8, 8))
    if kind == "colour":
        return write_tar(folder / "a.tar", {"1.png": encode(noise(8, 8, "RGB"))})
    if kind == "deep":
        return write_tar(folder / "a.tar", {"1.png": encode(Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)))})
    if kind == "cut image":
        return write_tar(folder / "a.tar", {"1.png": picture[:60]})
    if kind == "cut archive":
        whole = write_tar(folder / "a.tar.xz", {f"{k}.png": encode(noise(50, 50, seed=k)) for k in range(9)}, "w:xz")
        whole.write_bytes(whole.read_bytes()[:9000])
        return whole
    if kind == "cut zip":
        (folder / "a.zip").write_bytes(b"PK\x03\x04" + bytes(50))
        return folder / "a.zip"
    if kind == "picture":
        (folder / "a.png").write_bytes(picture)
        return folder / "a.png"
    if kind == "empty":
        return write_tar(folder / "a.tar", {"notes.txt": b"", ".hidden.png": picture, "__MACOSX/1.png": picture})
    return folder / "none"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("colour", "a.tar: 1.png: an image in colour for a feature extractor that reads grey ones"),
        ("deep", "a.tar: 1.png: the image has more than 8 bits a channel"),
        ("cut image", "a.tar: 1.png: the image cannot be decoded: "),
        ("cut archive", "a.tar.xz: the tar archive cannot be read: "),
        ("cut zip", "a.zip: the zip archive cannot be read: "),
        ("picture", "a.png: neither a folder nor a zip or tar archive\n  hint: a reference is a folder or archive"),
        ("empty", r"a.tar: there are no images \(.png, .jpg, .*\) in the tar archive"),
        ("missing", "none: there is no such file or folder"),
    ],
)
def test_references_that_cannot_be_read(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DmqError, match=message):
        list(image_batches(broken(kind, tmp_path), channels=1, batch=1))


def test_an_empty_folder_is_no_reference(tmp_path: Path) -> None:
    with pytest.raises(DmqError, match=r"there are no images .* in the folder"):
        list(image_files(tmp_path))


def test_an_archive_reads_and_writes_nothing_outside_of_itself(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(encode(noise(8, 8, seed=1)))
    inner = tmp_path / "inner"
    inner.mkdir()
    source = write_tar(inner / "a.tar", {"../escaped.png": encode(noise(8, 8)), "/rooted.png": encode(noise(8, 8))})
    with tarfile.open(source, "a") as archive:
        for kind, name in ((tarfile.SYMTYPE, "soft.png"), (tarfile.LNKTYPE, "hard.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(outside)
            archive.addfile(link)
    assert [name for name, _ in image_files(source)] == ["../escaped.png", "/rooted.png"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "inner", "outside.png"]


def test_a_member_that_claims_too_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files_module, "LARGEST", 50)
    source = write_tar(tmp_path / "a.tar", {"1.png": encode(noise(8, 8))})
    with pytest.raises(DmqError, match=r"a.tar: 1.png: an image has \d+ bytes, more than the 50 that are read"):
        list(image_files(source))


def test_stored_statistics_are_a_reference(sources: dict[str, Path], tiny: FeatureExtractor, tmp_path: Path) -> None:
    path = tmp_path / "digits.safetensors"
    images = reference_statistics(sources["digits.zip"], tiny, subset="train")
    assert images.source == "digits.zip/train"
    save_statistics(path, images)
    stored = reference_statistics(path, tiny)
    assert torch.equal(stored.pooled.covariance, images.pooled.covariance) and stored.source == images.source
    with pytest.raises(DmqError, match="stored statistics have no subset 'test'"):
        reference_statistics(path, tiny, subset="test")


def test_an_extractors_size_goes_before_the_models(tiny: FeatureExtractor, tmp_path: Path) -> None:
    source = write_tar(tmp_path / "a.tar", {f"{k}.png": encode(noise(28, 28, seed=k)) for k in range(3)})

    def padded() -> Iterator[Tensor]:
        return image_batches(source, channels=1, size=(32, 32))

    found = reference_statistics(source, tiny, size=(64, 64))
    torch.testing.assert_close(found.features, tiny(torch.cat(list(padded()))).pooled)


def test_stored_statistics_are_of_images_of_one_size(tmp_path: Path, make_extractor: Any) -> None:
    """An extractor of any size would read images of two sizes, and call the distance by one name."""
    extractor = make_extractor(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        Image.effect_noise((32, 32), 20 + 30 * index).save(folder / f"{index}.png")
    statistics = reference_statistics(folder, extractor)
    assert statistics.size == (32, 32) and statistics.logits.numel() == 0
    save_statistics(tmp_path / "stored.safetensors", statistics)
    extractor.size = None
    assert reference_statistics(tmp_path / "stored.safetensors", extractor, size=(32, 32)).count == 3
    with pytest.raises(DmqError, match="of images at 32x32, and the model's are of 64x64"):
        reference_statistics(tmp_path / "stored.safetensors", extractor, size=(64, 64))
    with pytest.raises(DmqError, match="the model's are of 32x48\n  hint: give the images themselves"):
        reference_statistics(tmp_path / "stored.safetensors", extractor, size=(32, 48))
