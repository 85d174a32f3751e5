"""Train the small reference diffusion models that dmq embeds (an example, not part of the package).

    python examples/train_reference_model.py --data mnist.tar.xz --subset train --channels 1 \
        --block-channels 24 48 96 128 --steps 5500 --output out/ddpm-mnist

Reads any archive or folder whose images lie in class folders, pads or resizes them to 32x32, and
trains a `UNet2DModel` to predict the noise, with an exponential moving average of the weights.
The run writes a checkpoint every `--checkpoint-every` steps and resumes from it; `--stop-after` ends it
early with one, for a machine that lends some minutes at a time. The result is a diffusers `DDIMPipeline`
folder in fp16 safetensors, in parts of at most 15 MB.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

from dmq_fx.quality.image_files import image_files

LARGEST_PART = "15MB"


def load_images(source: Path, subset: str, channels: int, size: int) -> tuple[torch.Tensor, list[str]]:
    """Read the images into uint8 `[n, channels, size, size]`, with the class folder of each.

    Images smaller than `size` are padded with black (MNIST: 28 to 32), larger ones resized.
    """
    images, labels = [], []
    mode = "L" if channels == 1 else "RGB"
    for name, data in image_files(source, subset or None):
        image = Image.open(io.BytesIO(data)).convert(mode)
        if max(image.size) > size:
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        canvas = Image.new(mode, (size, size))
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        images.append(np.asarray(canvas).reshape(size, size, channels))
        labels.append(Path(name).parts[-2])
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels


def typical_images(images: torch.Tensor, labels: list[str], share: float) -> torch.Tensor:
    """Of each class the `share` of images that look most like the class's mean image (by cosine).

    A model of few parameters and little training paints clear examples of a narrower distribution, where it would
    paint many unreadable ones of the whole.
    """
    rows = images.flatten(1).float()
    kept = []
    for name in sorted(set(labels)):
        index = torch.tensor([i for i, label in enumerate(labels) if label == name])
        likeness = torch.cosine_similarity(rows[index], rows[index].mean(0, keepdim=True))
        kept.append(index[likeness.argsort(descending=True)[: round(share * len(index))]])
    return images[torch.cat(kept)]


def build_unet(args: argparse.Namespace) -> UNet2DModel:
    attention = [args.size >> level == 8 for level in range(len(args.block_channels))]
    return UNet2DModel(
        sample_size=args.size,
        in_channels=args.channels,
        out_channels=args.channels,
        layers_per_block=args.layers_per_block,
        block_out_channels=tuple(args.block_channels),
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        attention_head_dim=args.head_dim,
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", clip_sample=True, timestep_spacing="leading"
    )


def save_atomically(state: dict, path: Path) -> None:
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


def train(args: argparse.Namespace) -> None:
    begun = time.time()
    device = torch.device(args.device)
    generator = torch.Generator(device).manual_seed(args.seed)
    torch.manual_seed(args.seed)
    images, labels = load_images(args.data, args.subset, args.channels, args.size)
    if args.typical < 1:
        images = typical_images(images, labels, args.typical)
    print(f"{len(images)} images", flush=True)
    images = images.to(device)

    unet = build_unet(args).to(device)
    if args.init is not None:
        unet.load_state_dict(UNet2DModel.from_pretrained(args.init / "unet").state_dict())
    print(f"{sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M parameters", flush=True)
    scheduler = build_scheduler()
    alphas = scheduler.alphas_cumprod.to(device)
    snr = alphas / (1 - alphas)
    loss_weight = torch.clamp(5.0 / snr, max=1.0)  # min-SNR-5 (arXiv:2303.09556) for epsilon prediction
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=0.0)

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / min(500, args.steps / 10))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / args.steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    ema = copy.deepcopy(unet).eval().requires_grad_(False)
    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "checkpoint.pt"
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state.get("steps", args.steps) != args.steps:
            raise SystemExit(f"{checkpoint} is of a run of {state['steps']} steps, which decide the learning rate")
        unet.load_state_dict(state["unet"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"].cpu())
        step = int(state["step"])
        print(f"resumed at step {step}", flush=True)
    forward = torch.compile(unet) if args.compile else unet

    started, first, running = time.time(), step, 0.0
    here = {"generator": generator, "device": device}
    while step < args.steps:
        index = torch.randint(len(images), (args.batch,), **here)
        x = images[index].float().div_(127.5).sub_(1.0)
        if args.flip:
            flips = torch.rand(args.batch, **here) < 0.5
            x = torch.where(flips[:, None, None, None], x.flip(-1), x)
        noise = torch.randn(x.shape, **here)
        # Stratified over the batch: one uniform draw a stratum has less variance than independent draws.
        t = (torch.arange(args.batch, device=device) + torch.rand(args.batch, **here)) / args.batch
        t = (t * 1000).long().clamp_(max=999)
        a = alphas[t][:, None, None, None]
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            predicted = forward(noisy, t).sample
        loss = ((predicted.float() - noise).square().mean((1, 2, 3)) * loss_weight[t]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(args.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1 - decay)
        step += 1
        running = running + (loss.detach() - running) * max(0.01, 1 / (step - first))
        if step % 100 == 0 or step - first in (5, 20):
            pace = (time.time() - started) / (step - first)
            print(f"step {step} loss {float(running):.4f} {pace:.3f} s/step", flush=True)
        out_of_time = args.stop_after and step % 10 == 0 and time.time() - begun > args.stop_after
        if step % args.checkpoint_every == 0 or step == args.steps or out_of_time:
            save_atomically(
                {
                    "unet": unet.state_dict(),
                    "ema": ema.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "generator": generator.get_state(),
                    "step": step,
                    "steps": args.steps,
                },
                checkpoint,
            )
            export(ema, args)
        if out_of_time and step < args.steps:
            print(f"out of time at step {step} of {args.steps}: run the same command again", flush=True)
            return


def export(ema: UNet2DModel, args: argparse.Namespace) -> None:
    """Write the averaged weights as a DDIMPipeline folder in fp16 safetensors."""
    half = copy.deepcopy(ema).to("cpu", torch.float16)
    DDIMPipeline(unet=half, scheduler=build_scheduler()).save_pretrained(
        args.output / "pipeline", max_shard_size=LARGEST_PART
    )
    record = {
        k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("data", "output", "init")
    }
    (args.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder, tar or zip of class folders of images")
    parser.add_argument("--subset", default="", help="only images below a folder of this name")
    parser.add_argument("--typical", type=float, default=1.0, help="share of each class kept: its most typical images")
    parser.add_argument("--init", type=Path, help="pipeline folder whose weights the training begins with")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, choices=(1, 3), default=1)
    parser.add_argument("--block-channels", type=int, nargs="+", default=[24, 48, 96, 128])
    parser.add_argument("--layers-per-block", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flip", action="store_true", help="random horizontal flips")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward and backward pass")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument("--stop-after", type=float, default=0, help="seconds after which the run ends; 0 for none")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
