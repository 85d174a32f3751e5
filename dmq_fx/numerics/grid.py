"""The integers that a value can take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmq_fx.errors import InternalError


@dataclass(frozen=True)
class IntegerGrid:
    """`bits`-wide integers: signed and centred on 0 if `symmetric`, else unsigned with a zero point."""

    bits: int
    symmetric: bool

    @property
    def qmin(self) -> int:
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8 if self.symmetric else torch.uint8

    @property
    def widest(self) -> IntegerGrid:
        """The grid that holds the integers of all rows: this one."""
        return self

    def clamp(self, x: Tensor) -> Tensor:
        """x, cut off at both ends of the grid."""
        return torch.clamp(x, self.qmin, self.qmax)

    def shaped(self, *sizes: int) -> IntegerGrid:
        """The grid for values whose rows are laid out in another way: the same for all."""
        return self


@dataclass(frozen=True, eq=False)
class ChannelGrid:
    """Integers of as many bits as each row (output channel) has, signed or unsigned as `IntegerGrid`'s.

    bits: int64, 1 to 8; [rows], or another shape that broadcasts against the values (`shaped`). One bit is unsigned
    only: the levels {0, s} or {-s, 0}.
    """

    bits: Tensor
    symmetric: bool

    def __post_init__(self) -> None:
        smallest = 2 if self.symmetric else 1
        if self.bits.is_floating_point() or not bool(((self.bits >= smallest) & (self.bits <= 8)).all()):
            kind = "symmetric" if self.symmetric else "asymmetric"
            raise InternalError(f"{kind} channels have {smallest} to 8 bits, got {sorted(set(self.bits.tolist()))}")

    @property
    def qmin(self) -> Tensor:
        """Of every row, int64."""
        return -(2 ** (self.bits - 1)) if self.symmetric else torch.zeros_like(self.bits)

    @property
    def qmax(self) -> Tensor:
        """Of every row, int64."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def dtype(self) -> torch.dtype:
        return self.widest.dtype

    @property
    def widest(self) -> IntegerGrid:
        """The grid that holds the integers of all rows."""
        return IntegerGrid(int(self.bits.max()), self.symmetric)

    def clamp(self, x: Tensor) -> Tensor:
        """x, cut off at both ends of its row's grid."""
        return torch.clamp(x, self.qmin.to(x), self.qmax.to(x))

    def shaped(self, *sizes: int) -> ChannelGrid:
        """The grid for values that `bits` in this shape broadcasts against."""
        return ChannelGrid(self.bits.reshape(sizes), self.symmetric)


Grid = IntegerGrid | ChannelGrid
"""One width for all values, or one a row."""
