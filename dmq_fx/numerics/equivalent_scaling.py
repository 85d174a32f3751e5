"""Equivalent scaling: x / gamma and W * gamma compute what x and W do, and may be easier to round.

Closed form: SmoothQuant (arXiv:2211.10438), equation 4. For learning: fake quantization of both sides that is
differentiable in gamma, straight through the rounding (ptq-methods 0 and 8.4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmq_fx.numerics.grid import Grid, IntegerGrid
from dmq_fx.numerics.qparams import SMALLEST_SCALE

SMALLEST = 1e-5
LARGEST_BALANCE = 1e4
"""No channel is scaled by more, or by less than one over it."""


def smoothquant_scale(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """gamma_j = max|X_j|^alpha / max|W_:j|^(1 - alpha), with a geometric mean of 1.

    activation, weight: largest absolute values of every channel, [channels]. A channel without values or without
    weights stays as it is. The mean is a convention: a common factor changes nothing, all ranges follow it.
    """
    scale = activation.clamp_min(SMALLEST) ** alpha / weight.clamp_min(SMALLEST) ** (1 - alpha)
    used = (activation > SMALLEST) & (weight > SMALLEST)
    if not bool(used.any()):
        return torch.ones_like(scale)
    scale = scale / scale[used].log().mean().exp()
    return torch.where(used, scale, torch.ones_like(scale)).clamp_min(SMALLEST)


def balanced_scale(activation: Tensor, weight: Tensor) -> Tensor:
    """s_i = sqrt(max|X_i| / max|W_i|), [channels]: both sides of a channel then have the same largest value.

    MPQ-DM's pre-scaling (AAAI 2025), whose delta is 1 / s. activation, weight: largest absolute values, [channels].
    1 for a channel without values or without weights.
    """
    used = (activation > SMALLEST) & (weight > SMALLEST)
    scale = (activation.clamp_min(SMALLEST) / weight.clamp_min(SMALLEST)).sqrt()
    return torch.where(used, scale.clamp(1 / LARGEST_BALANCE, LARGEST_BALANCE), torch.ones_like(scale))


def largest_by_input(weights: list[Tensor]) -> Tensor:
    """max |W_:j| over the outputs of all `weights` [out, in, ...] that read one input: [in]."""
    return torch.stack([w.detach().float().abs().transpose(0, 1).flatten(1).amax(1) for w in weights]).amax(0)


def affine_scale(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale, differentiable in the range, and zero point, which is not; of any shape. Ranges take in zero.

    The bits of a `ChannelGrid` broadcast against the ranges.
    """
    low, high = low.clamp_max(0), high.clamp_min(0)
    if grid.symmetric:
        scale = torch.maximum(low / grid.qmin, high / grid.qmax).clamp_min(SMALLEST_SCALE)
        return scale, torch.zeros_like(scale)
    scale = ((high - low) / (grid.qmax - grid.qmin)).clamp_min(SMALLEST_SCALE)
    return scale, grid.clamp(grid.qmin - torch.round(low / scale)).detach()


def round_through(x: Tensor) -> Tensor:
    """Rounding whose gradient is that of the identity."""
    return x + (torch.round(x) - x).detach()


def fake_quantize_weight(weight: Tensor, rows: int, shrink: Tensor, grid: Grid) -> Tensor:
    """A weight rounded on the range of its values at the moment, differentiable in the weight.

    rows: number of scales. shrink: [rows], the part of the min-max range that is used.
    """
    flat = weight.reshape(rows, -1)
    scale, zero_point = affine_scale(flat.amin(1) * shrink, flat.amax(1) * shrink, grid)
    scale, zero_point = scale[:, None], zero_point[:, None]
    integers = grid.shaped(-1, 1).clamp(round_through(flat / scale) + zero_point)
    return ((integers - zero_point) * scale).reshape(weight.shape)


class ScaledFakeQuantize(torch.autograd.Function):
    """x / gamma rounded with scales of every sample; gradients of gamma and of the scales, none of x.

    One pass over x forwards and one back, where the composition of operators would take a dozen.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, gamma: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid, axis: int
    ) -> Tensor:
        """x: [samples, ...]; gamma: [channels] along `axis`; scale, zero_point: [samples]."""
        by_sample, by_channel = (-1, *([1] * (x.dim() - 1))), (-1, *([1] * (x.dim() - 1 - axis)))
        real = x * (1.0 / (scale.reshape(by_sample) * gamma.reshape(by_channel)))
        centred = torch.clamp(
            torch.round(real), grid.qmin - zero_point.reshape(by_sample), grid.qmax - zero_point.reshape(by_sample)
        )
        ctx.save_for_backward(real, centred, gamma, scale)
        ctx.axis = axis
        return centred * scale.reshape(by_sample)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        real, centred, gamma, scale = ctx.saved_tensors
        (grad,) = grads
        inside = (real - centred).abs_() <= 0.5
        through = torch.where(inside, grad * real, 0.0)
        samples = tuple(range(1, real.dim()))
        rest = tuple(dim for dim in range(1, real.dim()) if dim != ctx.axis)
        per_channel = through.sum(rest) if rest else through
        grad_gamma = -(scale @ per_channel) / gamma
        grad_scale = (grad * centred).sum(samples) - through.sum(samples)
        return None, grad_gamma, grad_scale, None, None, None
