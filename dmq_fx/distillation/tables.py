"""Ranges of activations while they are learned: a scale and a zero point for every sampler step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmq_fx.calibration.streaming import activation_factors
from dmq_fx.distillation.quantizers import learned_fake_quantize
from dmq_fx.numerics import IntegerGrid, QParams
from dmq_fx.numerics.qparams import SMALLEST_SCALE
from dmq_fx.program.program import Activation, Program


class RangeTable(nn.Module):
    """Ranges of several activations, one column each: scale and zero point, float32 [slots, activations].

    TALSQ of EfficientDM (arXiv:2310.03270): a row is used at its own sampler step only. A table of one row is that of
    activations whose range is the same at all steps.
    """

    def __init__(self, found: list[QParams], grids: list[IntegerGrid]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.stack([one.scale.float() for one in found], 1))
        self.zero_point = nn.Parameter(torch.stack([one.zero_point.float() for one in found], 1))
        device = self.scale.device
        low, high = torch.tensor([[grid.qmin, grid.qmax] for grid in grids], device=device).float().T
        symmetric = torch.tensor([grid.symmetric for grid in grids], device=device)
        # integers without a zero point stay so; the others keep zero on the grid, for the padding of convolutions
        self._bounds = (torch.where(symmetric, 0.0, low), torch.where(symmetric, 0.0, high))

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

    table, column: where its range is learned; fixed: its range if it is not.
    """

    def __init__(
        self,
        program: Program,
        activation: Activation,
        *,
        table: RangeTable | None = None,
        column: int = 0,
        fixed: QParams | None = None,
        rounded: bool = True,
    ) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple, so that shared parameters are those of the table alone
        self._column = column
        self._fixed = fixed
        self._rounded = rounded
        self._program = program
        self._activation = activation
        self._grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)

    def forward(self, x: Tensor, slot: Tensor | None) -> Tensor:
        """x: [batch, ...] (or a multiple of the batch); slot: [batch], ignored where there is one range."""
        rows = None
        if self._activation.spec.per_timestep and slot is not None:
            rows = slot.repeat_interleave(self._activation.batch_multiple) if self._repeats else slot
        table = self._table[0]
        if table is not None:
            scale, zero_point = table.scale[:, self._column], table.zero_point[:, self._column]
        else:
            assert self._fixed is not None
            scale, zero_point = (part.to(x.device).float() for part in self._fixed)
        if rows is not None:
            shape = (-1, *([1] * (x.dim() - 1)))
            scale, zero_point = scale[rows].reshape(shape), zero_point[rows].reshape(shape)
        up, down = activation_factors(self._program, self._activation, x, rows)
        found = learned_fake_quantize(
            x.float(),
            scale,
            zero_point,
            float(self._grid.qmin),
            float(self._grid.qmax),
            rounded=self._rounded,
            up=up,
            down=down,
        )
        return found.to(x.dtype)

    @property
    def _repeats(self) -> bool:
        return self._activation.batch_multiple != 1
