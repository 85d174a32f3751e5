"""What the tests of scores share: drawn digits, and an extractor to read them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dmq_fx.quality.classifier import ClassifierConfig, SmallResNet
from dmq_fx.quality.features import FeatureExtractor, load_extractor, to_signed_unit


def draw_digits(count: int, seed: int) -> Tensor:
    """Digits of a font, shifted, turned and scaled at random, [count, 1, 32, 32] uint8."""
    numbers = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        picture = Image.new("L", (32, 32))
        size, x, y = numbers.uniform(17, 24), numbers.normal(16, 1), numbers.normal(16, 1)
        font = ImageFont.load_default(float(size))
        ImageDraw.Draw(picture).text((x, y), str(index % 10), fill=255, font=font, anchor="mm")
        pictures.append(np.asarray(picture.rotate(numbers.normal(0, 8), Image.Resampling.BILINEAR)))
    return torch.from_numpy(np.stack(pictures))[:, None]


def small_extractor(seed: int, name: str = "mnist", channels: int = 1) -> FeatureExtractor:
    """An extractor with random weights."""
    torch.manual_seed(seed)
    config = ClassifierConfig(name, channels, 32, (8, 16, 24, 32), (0, 1, 1, 1), tuple("0123456789"))
    network = SmallResNet(config).eval()
    return FeatureExtractor(name, network, channels=channels, size=32, prepare=to_signed_unit)


@pytest.fixture(scope="session")
def draw() -> Callable[[int, int], Tensor]:
    return draw_digits


@pytest.fixture(scope="session")
def make_extractor() -> Callable[..., FeatureExtractor]:
    return small_extractor


@pytest.fixture(scope="session")
def digits() -> Tensor:
    return draw_digits(300, 0)


@pytest.fixture(scope="session")
def tiny() -> FeatureExtractor:
    """Fast, with random weights; it goes by the name of `mnist`."""
    return small_extractor(0)


@pytest.fixture(scope="session")
def mnist() -> FeatureExtractor:
    """The one that comes with dmq."""
    return load_extractor("mnist")
