"""Plant outliers in a UNet without changing what it computes, for showing that a method handles them.

    python benchmarks/outliers.py --model builtin:ddpm-mnist --output out/mnist-outliers
    dmq compile ptq/w4a8 --model out/mnist-outliers -o out/w4a8-outliers

A channel is multiplied in every layer that produces it and divided out of every layer that reads it, so the places are
those with nothing but linear maps between:

- an attention's norm and its to_q, to_k, to_v (and a transformer block's last norm and its feed-forward);
- to_v and to_out: the product with the attention weights is linear in the values;
- a half of a skip concat. A concat is read by conv_shortcut, which is linear, and by norm1, which is not: GroupNorm
  takes the common factor of a whole group of channels out again (up to its epsilon), that of one channel it does not.
  So whole groups of norm1 are scaled, and only where they lie in one half, every producer is linear and every other
  reader is such a resnet too. Those are, in diffusers' UNets: the upsampler's convolution and, in blocks without
  attention, the resnet before (decoder half); the downsampler's convolution, if the resnet behind it has a
  conv_shortcut (encoder half). What a resnet or an attention of the encoder adds to the residual stream goes on along
  identities and cannot be scaled.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from dmq_fx.models import example_inputs, load_model

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D")
ROWS = 8
"""Rows of the batch, of as many timesteps, that say which channels are large."""


@dataclass(frozen=True)
class Place:
    """A value that can be scaled.

    site: a module that reads it, from input channel `start` on. part: which of that module's inputs it is.
    producers: modules whose output channels (weight rows and bias) make it. readers: modules whose input channels,
    from the given one on, are it. sets: channels that must be scaled together.
    """

    site: str
    part: str
    start: int
    producers: tuple[nn.Module, ...]
    readers: tuple[tuple[nn.Module, int], ...]
    sets: tuple[tuple[int, ...], ...]


@torch.no_grad()
def plant(denoiser: nn.Module, *, factor: float = 20.0, channels: int = 1, seed: int = 0) -> list[str]:
    """Scale `channels` channels (of a concat: groups) of every place by `factor`, in place; what was scaled, as text.

    Picked at random among the half of a place's channels that are the larger ones for random inputs, so that they
    stand out. Raises TraceError for a class of denoiser whose inputs are not known.
    """
    generator = torch.Generator().manual_seed(seed)
    found = places(denoiser)
    peaks = channel_peaks(denoiser, [place.site for place in found], example_inputs(denoiser, ROWS))
    done = []
    for place in found:
        size = torch.tensor([float(peaks[place.site][[place.start + c for c in s]].mean()) for s in place.sets])
        larger = size.argsort(descending=True, stable=True)[: max(channels, (len(size) + 1) // 2)]
        picked = larger[torch.randperm(len(larger), generator=generator)[:channels]]
        chosen = sorted(channel for index in picked.tolist() for channel in place.sets[index])
        for producer in place.producers:
            producer.weight[chosen] *= factor
            if producer.bias is not None:
                producer.bias[chosen] *= factor
        for reader, start in place.readers:
            reader.weight[:, [start + channel for channel in chosen]] /= factor
        shown = _ranges([place.start + channel for channel in chosen])
        done.append(f"{place.site}: {place.part} channels {shown} x {factor:g}")
    return done


def places(denoiser: nn.Module) -> list[Place]:
    """Every place of a UNet2DModel or UNet2DConditionModel where channels can be scaled."""
    names = {module: name for name, module in denoiser.named_modules()}
    found = []
    for module, name in names.items():
        if isinstance(module, Attention):
            found += _attention(module, name)
        if isinstance(module, BasicTransformerBlock):
            found += _transformer(module, name)
    return found + [_concat_place(value, names) for value in _concat_halves(denoiser) if _scale_free(value)]


def _attention(attention: Attention, name: str) -> Iterator[Place]:
    """group_norm -> to_q, to_k, to_v and to_v -> to_out, of an attention whose processor is known."""
    if not _is_plain(attention):
        return
    readers = (attention.to_q, attention.to_k, attention.to_v)
    if isinstance(attention.group_norm, nn.GroupNorm) and not attention.is_cross_attention:
        yield _channels(f"{name}.to_q", attention.group_norm, readers)
    yield _channels(f"{name}.to_out.0", attention.to_v, (attention.to_out[0],))


def _transformer(block: BasicTransformerBlock, name: str) -> Iterator[Place]:
    """The norms of a transformer block and what reads them; not where a norm is modulated."""
    if block.norm_type != "layer_norm" or block.pos_embed is not None or not block.norm_elementwise_affine:
        return
    for norm, attention, part in ((block.norm1, block.attn1, "attn1"), (block.norm2, block.attn2, "attn2")):
        if attention is None or not _is_plain(attention) or attention.group_norm is not None:
            continue
        own = (attention.to_q, attention.to_k, attention.to_v)
        yield _channels(f"{name}.{part}.to_q", norm, own[:1] if attention.is_cross_attention else own)
    yield _channels(f"{name}.ff.net.0.proj", block.norm3, (block.ff.net[0].proj,))


def _is_plain(attention: Attention) -> bool:
    return (
        isinstance(attention.processor, (AttnProcessor, AttnProcessor2_0))
        and attention.to_k is not None
        and not attention.fused_projections
        and attention.spatial_norm is None
        and attention.norm_cross is None
        and attention.added_kv_proj_dim is None
        and attention.inner_kv_dim == attention.inner_dim
    )


def _channels(site: str, producer: nn.Module, readers: Sequence[nn.Module]) -> Place:
    """A value whose channels can be scaled one by one."""
    sets = tuple((channel,) for channel in range(len(producer.weight)))
    return Place(site, "input", 0, (producer,), tuple((reader, 0) for reader in readers), sets)


@dataclass(frozen=True)
class _Half:
    """A half of a concat: the convolutions that add up to it, and the resnets that read it, from which channel on."""

    producers: tuple[nn.Conv2d, ...]
    readers: tuple[tuple[ResnetBlock2D, int], ...]
    channels: int


def _concat_halves(unet: nn.Module) -> Iterator[_Half]:
    """Halves of skip concats whose producers are convolutions; none in a UNet with blocks that are not known."""
    down, up = getattr(unet, "down_blocks", ()), getattr(unet, "up_blocks", ())
    if any(type(b).__name__ not in DOWN_BLOCKS for b in down) or any(type(b).__name__ not in UP_BLOCKS for b in up):
        return
    skips: list[_Half] = [_Half((), (), unet.conv_in.out_channels)]
    for index, block in enumerate(down):
        skips += [_Half((), (), resnet.out_channels) for resnet in block.resnets]
        for sampler in block.downsamplers or ():
            known = isinstance(sampler, Downsample2D) and sampler.norm is None and isinstance(sampler.conv, nn.Conv2d)
            behind = ((down[index + 1].resnets[0], 0),) if index + 1 < len(down) else ()
            skips.append(_Half((sampler.conv,) if known else (), behind, block.resnets[-1].out_channels))
    hidden: tuple[nn.Conv2d, ...] = ()
    for block in up:
        for resnet in block.resnets:
            skip = skips.pop()
            decoder = resnet.in_channels - skip.channels
            yield _Half(hidden, ((resnet, 0),), decoder)
            yield _Half(skip.producers, (*skip.readers, (resnet, decoder)), skip.channels)
            alone = not hasattr(block, "attentions") and resnet.conv_shortcut is not None
            hidden = (resnet.conv2, resnet.conv_shortcut) if alone else ()
        for sampler in block.upsamplers or ():
            known = isinstance(sampler, Upsample2D) and sampler.norm is None and isinstance(sampler.conv, nn.Conv2d)
            hidden = (sampler.conv,) if known and not sampler.use_conv_transpose else ()


def _scale_free(half: _Half) -> list[tuple[int, ...]]:
    """Smallest sets of a half's channels that are whole groups of every norm that reads it."""
    linear = all(type(r) is ResnetBlock2D and r.conv_shortcut is not None for r, _ in half.readers)
    if not half.producers or not linear:
        return []
    owner = list(range(half.channels))
    outside: set[int] = set()
    for resnet, offset in half.readers:
        size = resnet.norm1.num_channels // resnet.norm1.num_groups
        for start in range(0, resnet.norm1.num_channels, size):
            inside = [c - offset for c in range(start, start + size) if 0 <= c - offset < half.channels]
            if not inside:
                continue
            joined = {owner[channel] for channel in inside}
            if len(inside) < size:
                outside |= joined
            if joined & outside:
                outside |= joined
            owner = [min(joined) if o in joined else o for o in owner]
    sets = {o: tuple(c for c in range(half.channels) if owner[c] == o) for o in owner}
    return [members for o, members in sets.items() if o not in outside]


def _concat_place(half: _Half, names: dict[nn.Module, str]) -> Place:
    resnet, start = half.readers[-1]
    part = "encoder half" if start else "decoder half"
    readers = tuple((r.conv_shortcut, first) for r, first in half.readers)
    return Place(f"{names[resnet]}.conv_shortcut", part, start, half.producers, readers, tuple(_scale_free(half)))


def _ranges(channels: Sequence[int]) -> str:
    """Channels, in order, with runs of them as `first-last`."""
    runs: list[list[int]] = []
    for channel in channels:
        if runs and runs[-1][-1] == channel - 1:
            runs[-1].append(channel)
        else:
            runs.append([channel])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def channel_peaks(denoiser: nn.Module, names: Sequence[str], call: dict[str, Any]) -> dict[str, Tensor]:
    """Largest |x| of every input channel, [channels], of the named modules over one call of the denoiser."""
    peaks: dict[str, Tensor] = {}
    handles = []
    for name in names:
        module = denoiser.get_submodule(name)

        def look(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            axis = args[0].dim() - 1 if isinstance(module, nn.Linear) else 1
            peaks[name] = args[0].abs().movedim(axis, 0).flatten(1).amax(1)

        handles.append(module.register_forward_pre_hook(look))
    with torch.no_grad():
        denoiser(**call)
    for handle in handles:
        handle.remove()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:ddpm-mnist")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pipeline with outliers")
    parser.add_argument("--factor", type=float, default=20.0)
    parser.add_argument("--channels", type=int, default=1, help="channels (of a concat: groups of them) a place")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    loaded = load_model(args.model)
    for line in plant(loaded.denoiser, factor=args.factor, channels=args.channels, seed=args.seed):
        print(line)
    (loaded.pipeline or loaded.denoiser).save_pretrained(args.output)


if __name__ == "__main__":
    main()
