"""Learning the rounding of one unit's weights, so that its output stays what it is in full precision."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dmq_fx.calibration.value_store import Rows
from dmq_fx.errors import CalibrationError
from dmq_fx.numerics import QuantizedWeight
from dmq_fx.numerics.adaround import Rounding, RoundingSchedule, fraction_of, reconstruction_loss
from dmq_fx.program.units import Unit

CHECK_EVERY = 20
"""Iterations between two looks at the losses: each look waits for the device."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter, beside the number of steps."""

EffectiveWeight = Callable[[str, Tensor], Tensor]
"""What a weight amounts to in the graph, from its name and the values that its integers stand for."""


@dataclass(frozen=True)
class LearningSettings:
    """How a unit is learned. batch: samples of an iteration. seed: of their draws."""

    learning_rate: float
    batch: int
    seed: int
    schedule: RoundingSchedule


class UnitReconstruction:
    """The roundings of one unit while they are learned, by Adam on all of them together.

    inputs, target: the unit's inputs and its full-precision output, for the same samples. roundings: of the weights to
    learn, by name. fixed: the unit's other weights as they are used. Iterations depend on the settings, the unit's name
    and what was learned before alone: one that is restored goes on as it would have.
    """

    def __init__(
        self,
        unit: Unit,
        inputs: Sequence[Rows],
        target: Rows,
        roundings: Mapping[str, Rounding],
        fixed: Mapping[str, Tensor],
        effective: EffectiveWeight,
        settings: LearningSettings,
    ) -> None:
        self.unit = unit
        self.iteration = 0
        self._inputs = inputs
        self._target = target
        self._roundings = roundings
        self._fixed = fixed
        self._effective = effective
        self._settings = settings
        self._samples = len(target.values) // target.multiple if target.multiple else 1
        self._alphas = {name: rounding.initial().requires_grad_() for name, rounding in roundings.items()}
        self._optimizer = torch.optim.Adam(self._alphas.values(), lr=settings.learning_rate, fused=True)
        self._losses: list[Tensor] = []
        self.loss = float("nan")

    def run(self, after: Callable[[], None]) -> None:
        """Take the iterations that are left, calling `after` now and then; CalibrationError if a loss is not finite."""
        device = self._target.values.device
        with reproducible(device):
            while self.iteration < self._settings.schedule.iterations:
                self._losses.append(self._step())
                self.iteration += 1
                if len(self._losses) == CHECK_EVERY or self.iteration == self._settings.schedule.iterations:
                    self._check()
                    after()

    def error(self, weights: Mapping[str, QuantizedWeight]) -> float:
        """Mean reconstruction error over all samples with these integers in place of the learned weights."""
        values = {name: weight.dequantized() for name, weight in weights.items()}
        total = 0.0
        with torch.no_grad():
            for picks in torch.arange(self._samples).split(self._settings.batch):
                total += float(self._loss(values, picks)) * len(picks)
        return total / self._samples

    def hard(self) -> dict[str, QuantizedWeight]:
        """Integers as they are learned so far."""
        return {name: rounding.hard(self._alphas[name]) for name, rounding in self._roundings.items()}

    def state(self) -> dict[str, Tensor]:
        """alpha of every weight and Adam's moments, by name."""
        found = {}
        for name, alpha in self._alphas.items():
            moments = self._optimizer.state[alpha]
            found[f"alpha.{name}"] = alpha.detach()
            found |= {f"{kind}.{name}": moments[kind] for kind in MOMENTS if kind in moments}
        return found

    def restore(self, state: Mapping[str, Tensor], iteration: int) -> None:
        """Go on from `state` after `iteration` iterations."""
        self.iteration = iteration
        for name, alpha in self._alphas.items():
            alpha.data.copy_(state[f"alpha.{name}"])
            if iteration:
                moments = {kind: state[f"{kind}.{name}"].to(alpha) for kind in MOMENTS}
                self._optimizer.state[alpha] = {"step": torch.tensor(float(iteration), device=alpha.device), **moments}

    def _step(self) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        fractions = {name: fraction_of(alpha) for name, alpha in self._alphas.items()}
        values = {name: rounding.soft(fractions[name]) for name, rounding in self._roundings.items()}
        loss = self._loss(values, self._picks())
        for fraction in fractions.values():
            pushed = self._settings.schedule.loss(fraction, self.iteration)
            loss = loss if pushed is None else loss + pushed
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _loss(self, values: Mapping[str, Tensor], picks: Tensor) -> Tensor:
        weights = {name: self._effective(name, value) for name, value in values.items()} | dict(self._fixed)
        inputs = [rows.take(picks) for rows in self._inputs]
        (output,) = self.unit.module(*inputs, *(weights[name] for name in self.unit.weights))
        return reconstruction_loss(output, self._target.take(picks))

    def _picks(self) -> Tensor:
        """Samples of this iteration, drawn from its number alone."""
        text = f"adaround {self._settings.seed} {self.unit.name} {self.iteration}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        return torch.randperm(self._samples, generator=torch.Generator().manual_seed(seed))[: self._settings.batch]

    def _check(self) -> None:
        losses = torch.stack(self._losses)
        finite, self.loss = losses.isfinite().tolist(), float(losses[-1])
        first = self.iteration - len(finite)
        self._losses.clear()
        if not all(finite):
            raise CalibrationError(
                f"the loss of adaround is not finite at iteration {first + finite.index(False)}",
                where=self.unit.name,
                hint="lower adaround's learning_rate, or check that the model's activations are finite in this dtype",
            )


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """On a GPU, only kernels whose gradients are the same at every run."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cuda = device.type == "cuda"
    if cuda:
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with sdpa_kernel(SDPBackend.MATH) if cuda else nullcontext():
            yield
    finally:
        if cuda:
            cudnn.deterministic, cudnn.benchmark = before
