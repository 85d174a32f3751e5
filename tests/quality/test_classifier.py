"""The classifiers that come with dmq, and what is said about folders that hold none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmq_fx.errors import ModelError
from dmq_fx.quality.classifier import ClassifierConfig, SmallResNet, load_classifier, save_classifier
from dmq_fx.quality.features import load_extractor

ASSETS = Path(__file__).parents[2] / "assets"
# name: accuracy of the weights of this digest (of the extractor, which files of statistics name), channels
SHIPPED = {
    "mnist": (0.9969, "d94c4310dfd9d97ef6143b339e6411f741ab3ec9caa83d4461e7981b2f01743a", 1),
    "cifar10": (0.9055, "e166bebeade0d660e7abcf46bb1df855135164ac0f2286285b9559231d9fe94b", 3),
}
TINY = ClassifierConfig("tiny", 1, 16, (4, 8, 12), (0, 2, 1), ("a", "b", "c"), mirror=False, accuracy=0.5)


@pytest.fixture
def tiny() -> SmallResNet:
    """A classifier whose normalization is not the identity."""
    torch.manual_seed(0)
    model = SmallResNet(TINY)
    model(torch.randn(8, 1, 16, 16))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
    return model.eval()


@pytest.fixture
def folder(tiny: SmallResNet, tmp_path: Path) -> Path:
    save_classifier(tiny, tmp_path / "tiny")
    return tmp_path / "tiny"


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_output_has_the_shapes_the_config_promises(tiny: SmallResNet) -> None:
    output = tiny(torch.randn(5, 1, 16, 16))
    assert output.pooled.shape == (5, TINY.features) == (5, 12)
    assert output.spatial.shape == (5, 8, 8, 8)
    assert output.logits.shape == (5, 3)
    assert torch.equal(output.logits, tiny.head(output.pooled))
    assert torch.allclose(output.pooled, tiny.stages[-1](output.spatial).mean((2, 3)))


def test_a_classifier_that_mirrors_reads_an_image_as_its_mirror_image(tiny: SmallResNet) -> None:
    x = torch.randn(5, 1, 16, 16)
    plain, flipped = tiny(x), tiny(x.flip(3))
    assert not torch.allclose(plain.pooled, flipped.pooled, atol=1e-3)
    tiny.config = replace(TINY, mirror=True)
    output, other = tiny(x), tiny(x.flip(3))
    for name in ("pooled", "logits"):
        mean = (getattr(plain, name) + getattr(flipped, name)) / 2
        assert torch.allclose(getattr(output, name), mean, atol=1e-6), name
        assert torch.allclose(getattr(output, name), getattr(other, name), atol=1e-6), name
    assert torch.allclose(output.spatial, (plain.spatial + flipped.spatial.flip(3)) / 2, atol=1e-6)
    assert torch.allclose(output.spatial, other.spatial.flip(3), atol=1e-6)


def test_training_reads_an_image_once(tiny: SmallResNet) -> None:
    x, seen = torch.randn(5, 1, 16, 16), []
    tiny.config = replace(TINY, mirror=True)
    tiny.stem.register_forward_hook(lambda *_: seen.append(1))
    tiny.train()(x)
    assert len(seen) == 1
    tiny.eval()(x)
    assert len(seen) == 3


def test_saved_classifier_loads_with_fp16_convolutions_and_exact_statistics(tiny: SmallResNet, folder: Path) -> None:
    loaded = load_classifier(folder)
    assert loaded.config == TINY
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    want, have = tiny.state_dict(), loaded.state_dict()
    for name, stored in load_file(folder / "model.safetensors").items():
        assert stored.dtype == (torch.float16 if stored.ndim > 1 else torch.float32), name
        assert have[name].dtype == torch.float32
        assert torch.equal(have[name], want[name].to(stored.dtype).float()), name
    x = torch.randn(4, 1, 16, 16)
    assert torch.allclose(loaded(x).logits, tiny(x).logits, atol=5e-3)


def test_config_survives_json() -> None:
    assert ClassifierConfig.from_json(json.loads(json.dumps(TINY.to_json())), where="here") == TINY


@pytest.mark.parametrize(
    ("shape", "received"), [((2, 3, 16, 16), r"\[2, 3, 16, 16\]"), ((1, 16, 16), r"\[1, 16, 16\]")]
)
def test_images_of_another_shape_are_refused(tiny: SmallResNet, shape: tuple[int, ...], received: str) -> None:
    with pytest.raises(ModelError, match=rf"^tiny: reads images of shape \[n, 1, 16, 16\], and received {received}"):
        tiny(torch.zeros(shape))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": [4]}, "'width' is no key of a classifier's config\n  hint: did you mean 'widths'"),
        ({"channels": "3"}, "channels is '3', and has to be a number of channels"),
        ({"widths": [4, 0, 8]}, "widths is [4, 0, 8], and has to be a list of channels"),
        ({"mirror": 1}, "mirror is 1, and has to be true or false"),
        ({"accuracy": 99.5}, "accuracy is 99.5, and has to be a share, 0 to 1"),
        ({"classes": [0, 1]}, "classes is [0, 1], and has to be a list of names"),
        ({"classes": []}, "classes is [], and has to be a list of names"),
        ({"blocks": [1, 1]}, "widths and blocks need one number a stage"),
        ({"size": 18}, "images of 18 pixels do not pass 3 stages"),
        ({"blocks": [1, 0, 1]}, "do not pass 3 stages of (1, 0, 1) blocks"),
    ],
)
def test_config_that_is_no_classifiers_is_refused(folder: Path, values: dict[str, object], message: str) -> None:
    change(folder, **values)
    with pytest.raises(ModelError) as caught:
        load_classifier(folder)
    assert message in str(caught.value)
    assert caught.value.where == str(folder / "config.json")


def test_folder_of_a_diffusion_model_is_refused(tmp_path: Path) -> None:
    shutil.copy(ASSETS / "ddpm-mnist" / "unet" / "config.json", tmp_path)
    with pytest.raises(ModelError, match="is no key of a classifier's config"):
        load_classifier(tmp_path)


def test_config_without_a_key_names_it(folder: Path) -> None:
    (folder / "config.json").write_text('{"name": "tiny", "channels": 1}')
    missing = "size, widths, blocks, classes, mirror, accuracy"
    with pytest.raises(ModelError, match=f"no classifier's config: {missing} missing"):
        load_classifier(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match="the file does not exist") as caught:
        load_classifier(folder)
    assert caught.value.where == str(folder / name)


def test_weights_of_another_classifier_are_refused(folder: Path) -> None:
    change(folder, blocks=[0, 1, 1])
    with pytest.raises(ModelError, match=r"do not fit config.json: 10 missing or unknown \(stages.1.1.conv1.weight"):
        load_classifier(folder)
    change(folder, blocks=[0, 2, 1], classes=["a", "b"])
    with pytest.raises(ModelError, match=r"head.bias has shape \[3\], and config.json asks for \[2\]"):
        load_classifier(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="the weights cannot be read"):
        load_classifier(folder)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="missing or unknown"):
        load_classifier(folder)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_classifier_is_what_its_card_says(name: str) -> None:
    folder = ASSETS / f"classifier-{name}"
    accuracy, digest, channels = SHIPPED[name]
    classifier = load_classifier(folder)
    config = classifier.config
    assert (config.name, config.channels, config.size, len(config.classes)) == (name, channels, 32, 10)
    assert config.accuracy == accuracy
    assert load_extractor(name).digest == digest  # other weights: measure their accuracy, and scores anew
    card = (folder / "README.md").read_text()
    assert f"**Accuracy {100 * config.accuracy:.2f} %**" in card
    assert "is not an FID" in " ".join(card.split())
    assert f"{config.features} pooled features" in card
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_classifier_tells_images_apart(name: str) -> None:
    """Trained weights: no feature is the same for all images, and each class has its own direction."""
    classifier = load_classifier(ASSETS / f"classifier-{name}")
    # Strokes and patches of all scales: noise, enlarged from 4, 8, 16 and 32 pixels.
    generator = torch.Generator().manual_seed(0)
    channels = classifier.config.channels
    noises = [torch.randn(32, channels, size, size, generator=generator) for size in (4, 8, 16, 32)]
    images = torch.cat([torch.nn.functional.interpolate(noise, size=32, mode="bilinear") for noise in noises])
    output = classifier((2 * images).clamp(-1, 1))
    assert output.pooled.isfinite().all() and output.spatial.isfinite().all()
    assert (output.pooled.std(0) > 1e-3).all()
    likeness = torch.nn.functional.cosine_similarity(classifier.head.weight[:, None], classifier.head.weight, dim=2)
    assert (likeness - torch.eye(10)).max() < 0.6
