"""Extractors: what they read, and what is said about images that they do not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from dmq_fx.errors import DmqError
from dmq_fx.quality.classifier import load_classifier
from dmq_fx.quality.features import FeatureExtractor, load_extractor, to_signed_unit, to_uint8

ASSETS = Path(__file__).parents[2] / "assets"

Make = Callable[..., FeatureExtractor]


def test_floats_are_rounded_to_what_a_png_of_them_holds() -> None:
    images = torch.rand(4, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    images[0, 0, 0, :3] = torch.tensor([0.5 / 255, 1.5 / 255, 1.0])
    saved = VaeImageProcessor.numpy_to_pil(images.permute(0, 2, 3, 1).numpy())
    pixels = torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in saved])
    assert torch.equal(to_uint8(images), pixels.reshape(4, 9, 7, 3).permute(0, 3, 1, 2))
    assert to_uint8(images)[0, 0, 0, :3].tolist() == [0, 2, 255]


def test_features_of_floats_are_those_of_the_saved_image(tiny: FeatureExtractor, digits: Tensor) -> None:
    floats = digits[:8].float() / 255 + 0.3 / 255
    assert torch.equal(tiny(floats.clamp(0, 1)).pooled, tiny(digits[:8]).pooled)


def test_features_have_the_networks_widths(tiny: FeatureExtractor, digits: Tensor) -> None:
    features = tiny(digits[:5])
    assert [list(part.shape) for part in (features.pooled, features.spatial, features.logits)] == [
        [5, 32],
        [5, 7 * 8 * 8],
        [5, 10],
    ]
    assert {part.dtype for part in (features.pooled, features.spatial, features.logits)} == {torch.float32}


def test_an_images_features_do_not_depend_on_the_batch(tiny: FeatureExtractor, digits: Tensor) -> None:
    whole = tiny(digits[:300])
    parts = [tiny(part) for part in digits[:300].split(7)]
    torch.testing.assert_close(torch.cat([part.pooled for part in parts]), whole.pooled)
    torch.testing.assert_close(torch.cat([part.logits for part in parts]), whole.logits)


def test_grey_images_are_repeated_for_an_extractor_of_colour(make_extractor: Make, digits: Tensor) -> None:
    colour = make_extractor(0, "cifar10", channels=3)
    assert torch.equal(colour(digits[:4]).logits, colour(digits[:4].expand(-1, 3, -1, -1).contiguous()).logits)


def test_a_digest_is_of_the_weights(make_extractor: Make, tiny: FeatureExtractor) -> None:
    assert make_extractor(0).digest == tiny.digest != make_extractor(1).digest
    assert len(tiny.digest) == 64


def test_a_digest_is_of_the_mirror_too() -> None:
    """The same weights give other features where an image is read with its mirror image."""
    network = load_classifier(ASSETS / "classifier-mnist")
    made = []
    for mirror in (False, True):
        network.config = replace(network.config, mirror=mirror)
        made.append(FeatureExtractor("mnist", network, channels=1, size=32, prepare=to_signed_unit))
    assert made[0].digest == load_extractor("mnist").digest != made[1].digest


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 32, 32), "'mnist' reads grey images, and received images in colour"),
        (torch.zeros(2, 1, 28, 28), "'mnist' reads images of 32x32 pixels, and received 28x28"),
        (torch.zeros(2, 4, 32, 32), r"expected images \[n, 1 or 3, height, width\], and received \[2, 4, 32, 32\]"),
        (torch.zeros(32, 32), r"expected images .* received \[32, 32\]"),
        (torch.zeros(0, 1, 32, 32), r"received \[0, 1, 32, 32\]"),
        (torch.full((1, 1, 32, 32), -1.0), "float images have values in 0..1, and received -1 to -1"),
        (torch.full((1, 1, 32, 32), 255.0), "received 255 to 255"),
        (torch.full((1, 1, 32, 32), torch.nan), "received nan to nan"),
        (torch.zeros(1, 1, 32, 32, dtype=torch.int64), "uint8 or floats in 0..1, and received torch.int64"),
    ],
)
def test_images_that_are_not_read(tiny: FeatureExtractor, images: Tensor, message: str) -> None:
    with pytest.raises(DmqError, match=message):
        tiny(images)


def test_an_extractor_that_nobody_knows() -> None:
    with pytest.raises(DmqError, match=r"unknown feature extractor 'mnits'\n  hint: did you mean 'mnist'"):
        load_extractor("mnits")
    with pytest.raises(DmqError, match=r"w\.pth: the feature extractor 'mnist' comes with dmq and takes no file"):
        load_extractor("mnist", "w.pth")
