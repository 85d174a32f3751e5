"""The small image classifiers whose features and logits stand in for Inception's where no hub can be reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from dmq_fx.errors import ModelError, did_you_mean
from dmq_fx.models.config import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_REPAIR = "a classifier folder is written by examples/train_feature_extractor.py"


@dataclass(frozen=True)
class ClassifierConfig:
    """A classifier's architecture, its classes in the order of the logits, and how well it reads them.

    widths, blocks: channels and residual blocks of each stage. The first is at the image's resolution, with the stem
    (it may have no block), each further one at half of the last. mirror: whether an image is read together with its
    mirror image, so that both give the same. accuracy: of the saved weights on the test images, as a share, 0..1.
    """

    name: str
    channels: int
    size: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    classes: tuple[str, ...]
    mirror: bool = False
    accuracy: float = 0.0

    @property
    def features(self) -> int:
        """Width of the pooled features."""
        return self.widths[-1]

    def to_json(self) -> dict[str, Any]:
        """The object in `config.json`."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: dict[str, Any], *, where: str) -> ClassifierConfig:
        """The config in `values`; raises ModelError at `where` for keys or values that are not a classifier's."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                hint = did_you_mean(key, known) or _REPAIR
                raise ModelError(f"{key!r} is no key of a classifier's config", where=where, hint=hint)
        if missing := [key for key in known if key not in values]:
            raise ModelError(f"no classifier's config: {', '.join(missing)} missing", where=where, hint=_REPAIR)
        for key, wanted, fits in _CHECKS:
            if not fits(values[key]):
                raise ModelError(f"{key} is {values[key]!r}, and has to be {wanted}", where=where)
        lists = {key: tuple(values[key]) for key in ("widths", "blocks", "classes")}
        config = cls(**{**values, **lists})
        if len(config.widths) != len(config.blocks) or len(config.widths) < 2:
            raise ModelError("widths and blocks need one number a stage, and two stages or more", where=where)
        if config.size % 2 ** (len(config.widths) - 1) or 0 in config.blocks[1:]:
            message = (
                f"images of {config.size} pixels do not pass {len(config.widths)} stages of {config.blocks} blocks"
            )
            raise ModelError(
                message, where=where, hint="each stage after the first has a block, which halves the image"
            )
        return config


class ClassifierOutput(NamedTuple):
    """What a classifier says of n images.

    pooled: `[n, widths[-1]]`, the last stage's map averaged over the pixels, in front of the last layer.
    spatial: `[n, widths[-2], height, width]`, the map of the stage before the last.
    logits: `[n, classes]`, not normalized.
    Of a classifier that mirrors, and is not in training: the means over an image and its mirror image, whose map is
    turned back.
    """

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (arXiv:1512.03385) that averages where they stride (arXiv:1812.01187)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.norm2.weight)  # a block begins as its shortcut
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A ResNet for small images: a 3x3 stem and one stage of residual blocks a resolution."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.widths[0]
        stem = nn.Conv2d(config.channels, width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.ModuleList()
        inputs = width
        for level, (outputs, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            stage = nn.Sequential()
            for index in range(blocks):
                stage.append(Block(inputs, outputs, stride=2 if level and not index else 1))
                inputs = outputs
            self.stages.append(stage)
        self.head = nn.Linear(inputs, len(config.classes))

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Features and logits of images in -1..1; x: `[n, channels, size, size]`, or ModelError."""
        wanted = (self.config.channels, self.config.size, self.config.size)
        if x.ndim != 4 or tuple(x.shape[1:]) != wanted:
            message = f"reads images of shape [n, {', '.join(map(str, wanted))}], and received {list(x.shape)}"
            raise ModelError(message, where=self.config.name)
        pooled, spatial = self._read(x)
        if self.config.mirror and not self.training:
            mirrored, turned = self._read(x.flip(3))
            pooled, spatial = (pooled + mirrored) / 2, (spatial + turned.flip(3)) / 2
        return ClassifierOutput(pooled, spatial, self.head(pooled))

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled features and the map of the stage before the last."""
        x = self.stem(x)
        spatial = x
        for stage in self.stages:
            spatial, x = x, stage(x)
        return x.mean((2, 3)), spatial


def save_classifier(model: SmallResNet, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`: convolutions and the head in fp16, normalization in fp32."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().to(torch.float16 if tensor.ndim > 1 else torch.float32).contiguous()
        for name, tensor in _tensors(model).items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(model.config.to_json(), indent=2) + "\n", encoding="utf-8")


def load_classifier(folder: str | Path) -> SmallResNet:
    """The classifier in `folder`, in fp32 and eval mode, without gradients.

    Raises ModelError where a file is missing or damaged, and where the weights are not those of the config.
    """
    folder = Path(folder)
    config = ClassifierConfig.from_json(read_json(folder / CONFIG), where=str(folder / CONFIG))
    model = SmallResNet(config)
    wanted, found = _tensors(model), _read_weights(folder / WEIGHTS)
    if wanted.keys() != found.keys():
        names = sorted(wanted.keys() ^ found.keys())
        message = f"the weights do not fit {CONFIG}: {len(names)} missing or unknown ({', '.join(names[:3])})"
        raise ModelError(message, where=str(folder / WEIGHTS), hint=_REPAIR)
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            message = f"{name} has shape {list(tensor.shape)}, and {CONFIG} asks for {list(wanted[name].shape)}"
            raise ModelError(message, where=str(folder / WEIGHTS), hint=_REPAIR)
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()}, strict=False)
    return model.eval().requires_grad_(False)


def _tensors(model: SmallResNet) -> dict[str, Tensor]:
    """The state that is saved: all but the batch counters of the normalization."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError("the file does not exist", where=str(path), hint=_REPAIR)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"the weights cannot be read: {error}", where=str(path), hint="copy the file again") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(fits, value))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


_CHECKS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("name", "a text", _is_name),
    ("channels", "a number of channels", _is_count),
    ("size", "a number of pixels", _is_count),
    ("widths", "a list of channels", _list_of(_is_count)),
    ("blocks", "a list of counts", _list_of(lambda value: type(value) is int and value >= 0)),
    ("classes", "a list of names", _list_of(_is_name)),
    ("mirror", "true or false", lambda value: isinstance(value, bool)),
    ("accuracy", "a share, 0 to 1", lambda value: isinstance(value, float | int) and 0 <= value <= 1),
)
