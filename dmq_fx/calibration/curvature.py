"""How much a weight matters to the prediction: the trace of the Gauss-Newton matrix of the task loss.

The loss is the mean squared difference of the prediction from full precision's. There its gradient is zero and its
Hessian is 2 JᵀJ / d (d numbers in a prediction), so that with random signs u

    tr(H_i) = 2 / d · E |J_iᵀ u|²

(Hutchinson): one backward pass a probe gives every layer's part, and no second derivative is taken. Every sample of a
minibatch has signs of its own; the expectation of the squared gradient is then the sum over the samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from dmq_fx.calibration.lockstep import prediction
from dmq_fx.calibration.minibatches import Minibatches
from dmq_fx.calibration.reconstruction import reproducible
from dmq_fx.errors import CalibrationError
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import Program


class Traces:
    """Running traces of some weights. sums, squares: float64 [weights], of the probes so far and their squares."""

    def __init__(self, program: Program, weights: Sequence[str], minibatches: Minibatches, seed: int) -> None:
        self._module = program.traced.graph_module
        self._minibatches = minibatches
        self._seed = seed
        self.weights = tuple(weights)
        self.done = 0
        self.sums = torch.zeros(len(self.weights), dtype=torch.float64)
        self.squares = torch.zeros_like(self.sums)

    def probe(self) -> None:
        """One minibatch and one backward pass, drawn from the number of the probe alone.

        Raises CalibrationError if a gradient is not finite.
        """
        arguments = self._minibatches.draw(self.done)
        leaves = {name: get_tensor(self._module, name).detach().clone().requires_grad_() for name in self.weights}
        with torch.enable_grad(), reproducible(arguments[0].device):
            output = prediction(functional_call(self._module, leaves, arguments))
            generator = torch.Generator().manual_seed(_seed_of(self._seed, self.done))
            signs = torch.randint(0, 2, output.shape, generator=generator).mul_(2).sub_(1).to(output)
            gradients = torch.autograd.grad((output * signs).sum(), list(leaves.values()), allow_unused=True)
        found = torch.zeros_like(self.sums)
        for place, (name, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            if gradient is not None:
                found[place] = float(gradient.double().square().sum()) * 2 / output.numel()
            if not bool(found[place].isfinite()):
                raise CalibrationError("the gradient of this weight is not finite", where=name)
        self.sums += found
        self.squares += found.square()
        self.done += 1

    def mean(self) -> Tensor:
        """tr(H) of every weight, float64 [weights]."""
        return self.sums / max(1, self.done)

    def relative_error(self) -> Tensor:
        """Standard error of the mean over the mean, of every weight; 0 where a trace is 0."""
        mean = self.mean().clamp_min(1e-300)
        variance = (self.squares / max(1, self.done) - mean.square()).clamp_min(0) / max(1, self.done - 1)
        return torch.where(self.sums > 0, variance.sqrt() / mean, 0.0)


def _seed_of(seed: int, probe: int) -> int:
    digest = hashlib.sha256(f"curvature {seed} {probe}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
