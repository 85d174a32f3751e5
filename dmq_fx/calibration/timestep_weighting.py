"""Weights of the timesteps in a loss that is averaged over them.

DMQ's adaptive timestep weighting (arXiv:2507.12933; ptq-methods 8.5): a step's weight is (1 - its share of the
running losses)^gamma, so that a few steps with large errors do not decide alone.

The release rounds a minibatch of mixed timesteps on one range, so that the errors of all steps are alike. With a range
for each step, a step of large activations has errors many times those of another: its share takes nearly all weight
from it, its error grows, and its share with it. `share: relative` compares what steps lose of their own output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmq_fx.recipe.language import option


@dataclass(frozen=True, kw_only=True)
class TimestepWeightingOptions:
    """How the loss is averaged over the sampler's steps."""

    kind: str = option(
        "focal: by a step's share of the loss; uniform; linear: falls over the sampler's steps",
        default="focal",
        choices=("focal", "uniform", "linear"),
    )
    gamma: float = option("exponent of focal, slope of linear", default=20.0, minimum=0.0, maximum=1000.0)
    share: str = option(
        "whose share (focal): of the losses over the power of the output they are in, or of the losses as they are",
        default="relative",
        choices=("relative", "absolute"),
    )
    momentum: float = option(
        "share of the running losses that an iteration keeps (focal)", default=0.95, minimum=0.0, maximum=0.9999
    )


class TimestepWeighting:
    """Weights of one site's samples. running: the running losses by slot, float32 [slots]."""

    def __init__(self, options: TimestepWeightingOptions, slots: int, device: torch.device) -> None:
        self.options = options
        self.running = torch.zeros(slots, device=device)

    def update(self, losses: Tensor, slot: Tensor, power: Tensor) -> None:
        """Take a minibatch's losses into the running ones; absent slots decay.

        losses, slot, power: [samples]; power: mean square of every sample's output.
        """
        if self.options.share == "relative":
            losses = losses / power.clamp_min(1e-12)
        # a product instead of index_add_, whose order of additions is not fixed on a GPU
        members = torch.nn.functional.one_hot(slot, len(self.running)).to(self.running)
        seen = losses.detach().float() @ members
        self.running = self.options.momentum * self.running + (1 - self.options.momentum) * seen

    def weights(self, slot: Tensor) -> Tensor:
        """Weights of the samples, [samples]; 1 where nothing is known yet."""
        if self.options.kind == "uniform":
            return torch.ones(slot.shape, device=slot.device)
        if self.options.kind == "linear":
            return 1 + (1 - slot / len(self.running)) * self.options.gamma
        total = self.running.sum()
        if not bool(total > 0) or bool((self.running > 0).sum() == 1):
            return torch.ones(slot.shape, device=slot.device)
        return (1 - self.running[slot] / total) ** self.options.gamma
