"""What the tests of scores share: drawn digits, and an extractor to read them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from dmq_fx.quality.classifier import ClassifierConfig, SmallResNet
from dmq_fx.quality.features import FeatureExtractor, load_extractor, to_signed_unit
from dmq_fx.quality.inception import FidInception


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


class RandomAlexNet(nn.Module):
    """The layers that LPIPS reads, as torchvision has them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride, padding, pooled in (
            (3, 64, 11, 4, 2, False),
            (64, 192, 5, 1, 2, True),
            (192, 384, 3, 1, 1, True),
            (384, 256, 3, 1, 1, False),
            (256, 256, 3, 1, 1, False),
        ):
            if pooled:
                layers.append(nn.MaxPool2d(3, 2))
            conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
            conv.weight.data.normal_(0, (2 / (inputs * kernel**2)) ** 0.5, generator=generator)
            conv.bias = None
            layers += [conv, nn.ReLU()]
        self.features = nn.Sequential(*layers)


@pytest.fixture
def alexnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision with one network, without a download."""
    vision = ModuleType("torchvision")
    vision.__spec__ = SimpleNamespace(name="torchvision")  # type: ignore[assignment]
    vision.models = SimpleNamespace(  # type: ignore[attr-defined]
        alexnet=lambda weights: RandomAlexNet(), AlexNet_Weights=SimpleNamespace(DEFAULT=None)
    )
    for name in ("torchmetrics.image.lpip", "torchmetrics.functional.image.lpips"):
        module = import_module(name)  # before there is a torchvision of which it would import more
        monkeypatch.setattr(module, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setitem(sys.modules, "torchvision", vision)


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


@pytest.fixture(scope="session")
def inception_state() -> dict[str, Tensor]:
    """Random weights of FID's Inception, under which activations keep their size through all layers."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in FidInception().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn = torch.randn(shape, generator=generator)
        if name.endswith(("bn.weight", "running_var")):
            drawn = 1 + drawn.clamp(-2, 2) / 4
        elif len(shape) > 1:
            drawn *= (2 / shape[1:].numel()) ** 0.5
        tensors[name] = drawn.half()
    return tensors


@pytest.fixture(scope="session")
def inception_weights(inception_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inception_state, path)
    return path
