"""Learned rounding: up or down for every weight, by gradient.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv:2004.10568), as BRECQ, Q-Diffusion
and DMQ use it: the fraction h(alpha) = clip(sigmoid(alpha) (zeta - gamma) + gamma, 0, 1) is added to floor(w / s),
and a regulariser that sets in after a warm-up pushes it to 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmq_fx.numerics.weights import QuantizedWeight

ZETA = 1.1
GAMMA = -0.1
NEVER_ZERO = 1e-6
"""alpha of a weight half way between two integers that nearest rounding takes down."""


@dataclass(frozen=True)
class Rounding:
    """The weights of one layer, each between two integers.

    floor: floor(w / scale) + zero_point, float32 [scales, values]. up: where nearest rounding goes up, bool alike.
    fraction: w / scale - floor(w / scale), alike. base: the integers of nearest rounding, with scale and zero point.
    """

    floor: Tensor
    up: Tensor
    fraction: Tensor
    base: QuantizedWeight

    @staticmethod
    def of(weight: Tensor, base: QuantizedWeight) -> Rounding:
        """weight: [out, in, ...], the values that `base` holds the nearest integers of."""
        rows = weight.detach().float().reshape(max(base.scale.numel(), 1), -1)
        ratio = rows * (1.0 / base.scale.reshape(-1, 1))
        floor = ratio.floor()
        return Rounding(floor + base.zero_point.reshape(-1, 1), ratio.round() > floor, ratio - floor, base)

    def initial(self) -> Tensor:
        """alpha at which h(alpha) is the weight's own fraction, and `hard` is nearest rounding; [scales, values]."""
        alpha = -torch.log((ZETA - GAMMA) / (self.fraction - GAMMA) - 1)
        # ties go to the even integer, and a logarithm is not exact near 0: the sign is what decides
        return torch.where(self.up, alpha.clamp(min=0.0), alpha.clamp(max=-NEVER_ZERO))

    def soft(self, fraction: Tensor) -> Tensor:
        """Values of the weight for the fractions h(alpha), [scales, values], differentiable; of the weight's shape."""
        scale, zero_point = self.base.scale.reshape(-1, 1), self.base.zero_point.reshape(-1, 1)
        integers = self.base.grid.shaped(-1, 1).clamp(self.floor + fraction)
        return ((integers - zero_point) * scale).reshape(self.base.integers.shape)

    def hard(self, alpha: Tensor) -> QuantizedWeight:
        """Integers: up where h(alpha) is at least one half."""
        grid = self.base.grid
        integers = grid.shaped(-1, 1).clamp(self.floor + (alpha.detach() >= 0)).to(grid.dtype)
        return QuantizedWeight(
            integers.reshape(self.base.integers.shape), self.base.scale, self.base.zero_point, self.base.grid
        )


@dataclass(frozen=True)
class RoundingSchedule:
    """Regulariser of the fractions over a run.

    weight: lambda. start, end: its exponent beta, falling linearly from one to the other after the warm-up, during
    which the regulariser is off. warmup: share of the iterations.
    """

    iterations: int
    weight: float = 0.01
    start: float = 20.0
    end: float = 2.0
    warmup: float = 0.2

    def beta(self, iteration: int) -> float | None:
        """The exponent at `iteration` (from 0); None during the warm-up."""
        first = self.warmup * self.iterations
        if iteration < first:
            return None
        return self.end + (self.start - self.end) * max(0.0, 1 - (iteration - first) / (self.iterations - first))

    def loss(self, fraction: Tensor, iteration: int) -> Tensor | None:
        """lambda * sum(1 - |2 h - 1|^beta) over all fractions h; None during the warm-up."""
        beta = self.beta(iteration)
        if beta is None:
            return None
        return self.weight * (1 - (2 * fraction - 1).abs().pow(beta)).sum()


def fraction_of(alpha: Tensor) -> Tensor:
    """h(alpha), in [0, 1]."""
    return torch.clamp(torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA, 0, 1)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared error, summed over axis 1 and averaged over the others.

    Axis 1 is the channels of a convolution's output and the tokens of a transformer's: the balance with the regulariser
    is the published one, whose lambda is tuned for it.
    """
    return (output.float() - target.float()).square().sum(1).mean()
