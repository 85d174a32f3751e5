"""Train the small classifiers whose features dmq measures image quality on (an example, not part of the package).

    python examples/train_feature_extractor.py --data cifar10.tar.xz --channels 3 --name cifar10 --flip --cutout 8 \
        --output out/classifier-cifar10

Reads the `train` and `test` folders of an archive of class folders and trains a `SmallResNet`: SGD with Nesterov
momentum in one cycle of the learning rate, label smoothing, random crops, flips and cutout, and an exponential moving
average of the weights. Writes a checkpoint each epoch and resumes from it. The result is a folder for
`load_classifier`: config.json with the accuracy of the saved fp16 weights on `test`, model.safetensors, and a card.
"""

from __future__ import annotations

import argparse
import copy
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from train_reference_model import load_images, save_atomically

from dmq_fx.quality.classifier import ClassifierConfig, SmallResNet, load_classifier, save_classifier

SIZE = 32
MIRRORED = ";\n  features and logits are the means over an image and its mirror image (`mirror` in config.json)"
CARD = """# classifier-{name}

A small ResNet that reads {size}×{size} images in {channels} channel(s) as one of {count} classes. {credit}
Weights only are shipped, no images.

- **Accuracy {accuracy} %** on the {tests:,} test images, of the fp16 weights as saved here, evaluated in fp32{mirror}.
- {parameters:.2f} M parameters: a stem and stages of {widths} channels with {blocks} residual blocks.
  Images are in -1..1; {features} pooled features, a {spatial} map in front of the last stage, {count} logits.
- Trained on the {trains:,} training images with

{command}

- Made to compare sets of generated images where Inception's weights are not at hand: by a Fréchet distance between
  the pooled features (`fd-{name}`) or the maps, and by an inception-like score of the logits. **A Fréchet distance on
  these features is not an FID**: compare it with distances on this very classifier, and never with a published FID.
- Load it with `dmq_fx.quality.classifier.load_classifier(FOLDER)`.
"""


def read_data(args: argparse.Namespace) -> dict:
    """uint8 images `[n, channels, 32, 32]` and labels `[n]` of `train` and `test`; the classes. Kept at `--cache`."""
    if args.cache is not None and args.cache.exists():
        return torch.load(args.cache, weights_only=True)
    data: dict = {}
    for subset in ("train", "test"):
        images, names = load_images(args.data, subset, args.channels, SIZE)
        classes = sorted(set(names))
        if data.setdefault("classes", classes) != classes:
            raise SystemExit(f"train and test have other classes: {data['classes']} and {classes}")
        data[subset] = (images, torch.tensor([classes.index(name) for name in names]))
    if args.cache is not None:
        args.cache.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(data, args.cache)
    return data


def normalise(images: Tensor) -> Tensor:
    """uint8 to -1..1, in channels-last memory."""
    return images.float().div_(127.5).sub_(1.0).contiguous(memory_format=torch.channels_last)


def draw(high: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` integers under `high`, `[count, 1, 1, 1]`."""
    return torch.randint(high, (count, 1, 1, 1), generator=generator)


def crop(images: Tensor, margin: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to `margin` pixels; the border is filled with its mirror image."""
    n, channels, height, width = images.shape
    padded = functional.pad(images.float(), (margin,) * 4, mode="reflect").to(images.dtype)
    rows = draw(2 * margin + 1, n, generator) + torch.arange(height)[:, None]
    columns = draw(2 * margin + 1, n, generator) + torch.arange(width)
    return padded[torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns]


def cutout(x: Tensor, edge: int, generator: torch.Generator) -> Tensor:
    """Paint a grey square of `edge` pixels somewhere into each image (arXiv:1708.04552)."""
    n, _, height, width = x.shape
    rows = torch.arange(height)[:, None] - draw(height - edge + 1, n, generator)
    columns = torch.arange(width) - draw(width - edge + 1, n, generator)
    return x.masked_fill((rows >= 0) & (rows < edge) & (columns >= 0) & (columns < edge), 0.0)


def rate(step: int, steps: int, warm: float) -> float:
    """The learning rate as a share of its highest: from 0.1 up for a share `warm` of the steps, then down to 0."""
    done = step / steps
    return 0.1 + 0.9 * done / warm if done < warm else (1 - done) / (1 - warm)


@torch.no_grad()
def accuracy(model: SmallResNet, images: Tensor, labels: Tensor) -> float:
    model.eval()
    read = torch.cat([model(normalise(batch)).logits.argmax(1) for batch in images.split(250)])
    return (read == labels).double().mean().item()


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move `ema` towards `model`, running statistics too."""
    for mean, value in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def train(args: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    data = read_data(args)
    images, labels = data["train"]
    print(f"{len(images)} training images, {len(data['test'][0])} test images, {data['classes']}", flush=True)
    config = ClassifierConfig(
        args.name, args.channels, SIZE, tuple(args.widths), tuple(args.blocks), tuple(data["classes"]), args.mirror
    )
    model = SmallResNet(config).to(memory_format=torch.channels_last)
    if args.init is not None:
        model.load_state_dict(load_classifier(args.init).state_dict())
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    ema = copy.deepcopy(model).requires_grad_(False)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=args.learning_rate, momentum=0.9, nesterov=True)
    batches = len(images) // args.batch
    steps = args.epochs * batches
    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "checkpoint.pt"
    # Which way an image is seen alternates (arXiv:2404.00498): two epochs show both sides of each.
    side = torch.rand(len(images), generator=generator) < 0.5
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["epochs"] != args.epochs:
            raise SystemExit(f"{checkpoint} belongs to a run of {state['epochs']} epochs; remove it for a new run")
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        first = int(state["epoch"])
        print(f"resumed after epoch {first}", flush=True)

    for epoch in range(first, args.epochs):
        started, total = time.time(), 0.0
        model.train()
        order = torch.randperm(len(images), generator=generator)[: batches * args.batch]
        for index, chosen in enumerate(order.split(args.batch)):
            step = epoch * batches + index
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * rate(step, steps, args.warm)
            x = normalise(crop(images[chosen], args.margin, generator))
            if args.flip:
                x = torch.where((side[chosen] ^ bool(epoch % 2))[:, None, None, None], x.flip(3), x)
            if args.cutout:
                x = cutout(x, args.cutout, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                logits = model(x).logits
            loss = functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=args.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            average(ema, model, min(args.ema, (1 + step) / (10 + step)))
            total += loss.item()
            if index in (9, 99):
                print(f"  step {index + 1}/{batches} {(time.time() - started) / (index + 1):.3f} s/step", flush=True)
        state = {"model": model.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"generator": generator.get_state(), "epoch": epoch + 1, "epochs": args.epochs}
        save_atomically(state, checkpoint)
        report = f"epoch {epoch + 1} loss {total / batches:.4f} {time.time() - started:.0f} s"
        if epoch % 4 == 3:
            report += f", accuracy {accuracy(ema, *data['test']):.4f}"
        print(report, flush=True)
    export(ema, data, args)


def export(ema: SmallResNet, data: dict, args: argparse.Namespace) -> None:
    """Save, load what was saved, test that, and write its accuracy into the config and the card."""
    save_classifier(ema, args.output)
    saved = load_classifier(args.output)
    images, labels = data["test"]
    config = replace(saved.config, accuracy=round(accuracy(saved, images, labels), 6))
    ema.config = config
    save_classifier(ema, args.output)
    spatial = saved(normalise(images[:1])).spatial
    card = CARD.format(
        name=config.name,
        size=SIZE,
        channels=config.channels,
        credit=args.credit,
        accuracy=f"{100 * config.accuracy:.2f}",
        tests=len(images),
        trains=len(data["train"][0]),
        mirror=MIRRORED if config.mirror else "",
        parameters=sum(p.numel() for p in saved.parameters()) / 1e6,
        widths=", ".join(map(str, config.widths)),
        blocks=", ".join(map(str, config.blocks)),
        count=len(config.classes),
        features=config.features,
        spatial="×".join(map(str, spatial.shape[1:])),
        command=command(),
    )
    (args.output / "README.md").write_text(card, encoding="utf-8")
    print(f"{100 * config.accuracy:.2f} % of the test images are read rightly by the saved weights", flush=True)


def command() -> str:
    """This very call as an indented block, paths without their folders, the cache left out."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    if "--cache" in words:
        del words[words.index("--cache") : words.index("--cache") + 2]
    options = re.split(r" (?=--)", shlex.join(words))
    lines = [f"python examples/{Path(__file__).name}"]
    for option in options:
        if len(lines[-1]) + len(option) > 100:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {option}"
    return "\n".join(f"      {line}" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder, tar or zip with train/CLASS and test/CLASS")
    parser.add_argument("--channels", type=int, choices=(1, 3), required=True)
    parser.add_argument("--name", required=True, help="short name of the data, in config.json and the card")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--credit", default="", help="a sentence in the card on whose data it is")
    parser.add_argument("--cache", type=Path, help="file that keeps the decoded images")
    parser.add_argument("--init", type=Path, help="classifier folder whose weights the training begins with")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 192])
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 2, 2, 1])
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.2, help="the highest of the cycle")
    parser.add_argument("--warm", type=float, default=0.2, help="share of the steps in which the learning rate rises")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--smoothing", type=float, default=0.1, help="label smoothing")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--margin", type=int, default=4, help="pixels that a random crop moves an image")
    parser.add_argument("--flip", action="store_true", help="horizontal flips, every other epoch")
    parser.add_argument(
        "--mirror", action="store_true", help="features are means over an image and its mirror image; twice the work"
    )
    parser.add_argument("--cutout", type=int, default=0, help="edge of a random grey square in pixels; 0 is none")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
