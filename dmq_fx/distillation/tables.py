"""Ranges of activations while they are learned: a scale and a zero point for every sampler step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.calibration.streaming import activation_factors
from dmq_fx.distillation.quantizers import learned_fake_quantize, round_straight_through
from dmq_fx.numerics import IntegerGrid, QParams
from dmq_fx.numerics.qparams import SMALLEST_SCALE
from dmq_fx.program.program import Activation, Program


class RangeTable(nn.Module):
    """Ranges of several activations, one column each: scale and zero point, float32 [slots, activations].

    TALSQ of EfficientDM (arXiv:2310.03270): a row is used at its own sampler step only. A table of one row is that of
    activations whose range is the same at all steps. rounded: zero points are used as the nearest integers, and learned
    straight through that.
    """

    def __init__(self, found: list[QParams], grids: list[IntegerGrid], *, rounded: bool = True) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.stack([one.scale.float() for one in found], 1))
        self.zero_point = nn.Parameter(torch.stack([one.zero_point.float() for one in found], 1))
        device = self.scale.device
        low, high = torch.tensor([[grid.qmin, grid.qmax] for grid in grids], device=device).float().T
        symmetric = torch.tensor([grid.symmetric for grid in grids], device=device)
        self._rounded = rounded
        # integers without a zero point stay so; the others keep zero on the grid, for the padding of convolutions
        self._bounds = (torch.where(symmetric, 0.0, low), torch.where(symmetric, 0.0, high))

    def forward(self, slot: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Scales and zero points by activation, each [batch] for the samples' slots, or [1] where there is one range.

        All of them at once: one gather a forward, and one scatter back.
        """
        zero_point = round_straight_through(self.zero_point) if self._rounded else self.zero_point
        scale = self.scale
        if slot is not None:
            scale, zero_point = scale[slot], zero_point[slot]
        return scale.unbind(1), zero_point.unbind(1)

    def clamp_(self) -> None:
        """Take what an optimizer step has moved out of bounds back: zero points on the grid, scales positive."""
        self.scale.data.clamp_(min=SMALLEST_SCALE)
        self.zero_point.data.clamp_(*self._bounds)

    def round_(self) -> None:
        """Put zero points on integers."""
        self.zero_point.data.round_()

    def column(self, index: int) -> QParams:
        """Scales and integer zero points of one activation, [slots] each."""
        scale, zero_point = self.scale.detach()[:, index], self.zero_point.detach()[:, index]
        return QParams(scale.clone(), zero_point.round().to(torch.int64))


class ActivationQuantizer(nn.Module):
    """Stands where the observer of an activation stood in the graph: rounds to the range of every sample's slot.

    column: where its range is in what a `RangeTable` gives; fixed: its range if it is not learned.
    """

    def __init__(
        self,
        program: Program,
        activation: Activation,
        *,
        column: int = 0,
        fixed: QParams | None = None,
    ) -> None:
        super().__init__()
        self._column = column
        self._fixed = fixed
        self._program = program
        self._activation = activation
        self._grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)

    def forward(self, x: Tensor, slot: Tensor | None, ranges: Any = None) -> Tensor:
        """x: [batch, ...] (or a multiple of the batch); slot: [batch], ignored where there is one range.

        ranges: of a `RangeTable` at this slot, if the range is learned.
        """
        timed, multiple = self._activation.spec.per_timestep and slot is not None, self._activation.batch_multiple
        rows = (slot.repeat_interleave(multiple) if multiple != 1 else slot) if timed else None  # type: ignore[union-attr]
        if ranges is not None:
            scale, zero_point = (part[self._column] for part in ranges)
            if rows is not None and multiple != 1:
                scale, zero_point = scale.repeat_interleave(multiple), zero_point.repeat_interleave(multiple)
        else:
            assert self._fixed is not None
            scale, zero_point = (part.to(x.device).float() for part in self._fixed)
            if rows is not None:
                scale, zero_point = scale[rows], zero_point[rows]
        if rows is not None:
            shape = (-1, *([1] * (x.dim() - 1)))
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        up, down = activation_factors(self._program, self._activation, x, rows)
        low, high = float(self._grid.qmin), float(self._grid.qmax)
        found = learned_fake_quantize(x.float(), scale, zero_point, low, high, rounded=False, up=up, down=down)
        return found.to(x.dtype)
