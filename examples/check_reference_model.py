"""Does a digit model paint digits? Read its samples with a classifier (an example, not part of the package).

    python examples/check_reference_model.py --data mnist.tar.xz --model assets/ddpm-mnist --samples 1000

Trains a small convolutional classifier on the archive's `train` folder (kept at `--classifier` and used again), prints
its accuracy on `test`, samples the pipeline with 20 DDIM steps, and prints how many samples are read with a confidence
over 0.9, and how often each class comes up.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDIMPipeline
from torch import Tensor, nn
from train_reference_model import load_images

CONFIDENT = 0.9


def build_classifier(channels: int, classes: int) -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(channels, 16),
        *block(16, 16),
        nn.MaxPool2d(2),
        *block(16, 32),
        *block(32, 32),
        nn.MaxPool2d(2),
        *block(32, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * 16, classes),
    )


def read(source: Path, subset: str, channels: int) -> tuple[Tensor, Tensor, list[str]]:
    images, names = load_images(source, subset, channels, 32)
    classes = sorted(set(names))
    return images, torch.tensor([classes.index(name) for name in names]), classes


def normalise(images: Tensor) -> Tensor:
    """uint8 to -1..1, as the diffusion model sees them."""
    return images.float().div(127.5).sub(1)


@torch.no_grad()
def classify(classifier: nn.Module, images: Tensor) -> Tensor:
    """Probabilities, [n, classes], of images in -1..1."""
    classifier.eval()
    return torch.cat([classifier(batch).softmax(1) for batch in images.split(500)])


def train_classifier(data: Path, channels: int, path: Path, epochs: int) -> nn.Module:
    images, labels, classes = read(data, "train", channels)
    classifier = build_classifier(channels, len(classes))
    if path.exists():
        classifier.load_state_dict(torch.load(path, weights_only=True))
        return classifier
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
    steps = epochs * (len(images) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(epochs):
        classifier.train()
        order = torch.randperm(len(images), generator=generator)
        for index in order.split(128)[: len(images) // 128]:
            loss = nn.functional.cross_entropy(classifier(normalise(images[index])), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}", flush=True)
    torch.save(classifier.state_dict(), path)
    return classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="archive with train/<class>/ and test/<class>/")
    parser.add_argument("--model", type=Path, required=True, help="a DDIMPipeline folder")
    parser.add_argument("--classifier", type=Path, default=Path("classifier.pt"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    pipeline = DDIMPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    channels = pipeline.unet.config.in_channels
    classifier = train_classifier(args.data, channels, args.classifier, args.epochs)
    test, labels, classes = read(args.data, "test", channels)
    accuracy = (classify(classifier, normalise(test)).argmax(1) == labels).float().mean()
    print(f"classifier: {accuracy:.4f} accuracy on {len(test)} test images", flush=True)
    found = []
    for first in range(0, args.samples, 100):
        generators = [torch.Generator().manual_seed(first + k) for k in range(min(100, args.samples - first))]
        images = pipeline(len(generators), generators, num_inference_steps=args.steps, output_type="np").images
        found.append(classify(classifier, torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1))
    confidence, digits = torch.cat(found).max(1)
    print(
        f"{args.steps} DDIM steps: {(confidence > CONFIDENT).float().mean():.3f} of {len(digits)} samples read with "
        f"confidence over {CONFIDENT}"
    )
    print("samples a class:", dict(zip(classes, torch.bincount(digits, minlength=len(classes)).tolist(), strict=True)))


if __name__ == "__main__":
    main()
