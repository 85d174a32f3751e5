"""GPTQ: round a weight column by column, and let the columns that follow make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv:2210.17323),
algorithm 1. The output error of a layer is tr(dW H dWᵀ) with the Hessian H = 2/N · X Xᵀ of its inputs. Rounding column
j costs e = (w_j - Q(w_j)) / U_jj, and taking e · U_j off the columns after it leaves the least error, where H⁻¹ = Uᵀ U
with U upper triangular. Scales and zero points are found beforehand and stay.

Shapes: `groups` are those of a grouped convolution, each a problem of its own (1 for everything else); `columns` are
the inputs of one output, in the order of `weight.flatten(1)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dmq_fx.errors import CalibrationError
from dmq_fx.numerics.grid import Grid
from dmq_fx.numerics.quantize import dequantize, quantize
from dmq_fx.numerics.weights import QuantizedWeight

LARGEST_DAMPING = 10.0
"""Share of the mean diagonal at which H is as good as a multiple of the identity, and nothing is left to learn."""
SMALLEST_RAISE = 1e-6
"""Where raising the damping starts if none was asked for."""
TRIANGLE = 256
"""Columns of H that are accumulated at once: H is symmetric, so what is right of them need not be."""


@dataclass(frozen=True)
class Window:
    """Where a convolution reads: one number for each of its spatial dimensions. padding: (before, after) of each."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


def linear_rows(x: Tensor) -> Tensor:
    """Inputs of a linear, [..., columns], as [1, rows, columns] float32."""
    return x.reshape(1, -1, x.shape[-1]).float()


def unfold(x: Tensor, window: Window) -> Tensor:
    """What every output position of a convolution reads.

    x: [batch, channels, *spatial]. Returns float32 [groups, batch * positions, channels / groups * kernel].
    """
    spatial = len(window.kernel)
    before_and_after = [size for sizes in reversed(window.padding) for size in sizes]
    x = functional.pad(x.float(), before_and_after)
    for axis in range(spatial):
        reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        x = x.unfold(2 + axis, reach, window.stride[axis])[..., :: window.dilation[axis]]
    x = x.unflatten(1, (window.groups, -1))
    positions = range(3, 3 + spatial)
    x = x.permute(1, 0, *positions, 2, *range(3 + spatial, 3 + 2 * spatial))
    return x.reshape(window.groups, -1, math.prod(x.shape[2 + spatial :]))


class Hessian:
    """Running H = 2/N · X Xᵀ, [groups, columns, columns] float32, for rows that come in any number of parts."""

    def __init__(self, groups: int, columns: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self._sum = torch.zeros(groups, columns, columns, device=device)  # its lower triangle, by blocks

    def add(self, x: Tensor) -> None:
        """Take in rows: float32 [groups, rows, columns]."""
        for start in range(0, x.shape[2], TRIANGLE):
            stop = min(start + TRIANGLE, x.shape[2])
            self._sum[:, start:stop, :stop] += x[:, :, start:stop].transpose(1, 2) @ x[:, :, :stop]
        self.rows += x.shape[1]

    def value(self) -> Tensor:
        """H of the rows so far."""
        lower = self._sum.tril()
        return (lower + self._sum.tril(-1).transpose(1, 2)) * (2.0 / max(self.rows, 1))


def hessian_bytes(groups: int, columns: int) -> int:
    """What a `Hessian` of that size takes."""
    return 4 * groups * columns * columns


def rescaled(hessian: Tensor, gamma: Tensor) -> Tensor:
    """H of the inputs x / gamma, from that of x. gamma: [in channels], each a run of columns (its kernel positions)."""
    groups, columns, _ = hessian.shape
    inverse = 1.0 / gamma.to(hessian).reshape(groups, -1)
    inverse = inverse.repeat_interleave(columns // inverse.shape[1], 1)
    return hessian * inverse[:, :, None] * inverse[:, None, :]


def output_error(delta: Tensor, hessian: Tensor) -> float:
    """tr(dW H dWᵀ): twice the mean over calibration rows of the squared output error, summed over the outputs.

    delta: an error of the weight, [out, in / groups, ...]. hessian: [groups, columns, columns].
    """
    rows = delta.reshape(len(hessian), -1, hessian.shape[-1]).double()
    return float(((rows @ hessian.double()) * rows).sum())


def gptq_weight(
    weight: Tensor,
    hessian: Tensor,
    nearest: QuantizedWeight,
    *,
    damping: float = 0.01,
    block: int = 128,
    act_order: bool = False,
    where: str | None = None,
) -> QuantizedWeight:
    """Integers of `weight` that keep its outputs, with the scales and zero points of `nearest`.

    weight: float32 [out, in / groups, ...]. hessian: [groups, columns, columns]. damping: share of the mean diagonal
    that is added to the diagonal. block: columns between two updates of all columns that follow. act_order: columns
    with the largest diagonal first; a column's scale is that of its own place either way.
    Raises CalibrationError, naming `where`, if H is not finite or has no Cholesky factor however it is damped.
    """
    groups, columns, _ = hessian.shape
    work = weight.detach().float().reshape(groups, -1, columns).clone()
    scale, zero_point = (_by_column(values, work) for values in (nearest.scale, nearest.zero_point))
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    dead = diagonal == 0  # inputs that are always 0
    work.masked_fill_(dead[:, None, :], 0.0)
    hessian = hessian + torch.diag_embed(dead.to(hessian))
    order = diagonal.argsort(dim=1, descending=True, stable=True) if act_order else None
    if order is not None:
        hessian = hessian.gather(1, order[:, :, None].expand_as(hessian))
        hessian = hessian.gather(2, order[:, None, :].expand_as(hessian))
        work, scale, zero_point = (_permuted(values, order) for values in (work, scale, zero_point))
    upper = _factor_of_inverse(hessian, damping, where)
    integers = _solve(work, upper, scale, zero_point, nearest.grid.shaped(groups, -1), block)
    if order is not None:
        integers = torch.empty_like(integers).scatter_(2, order[:, None, :].expand_as(integers), integers)
    integers = integers.reshape(weight.shape).to(nearest.grid.dtype)
    return QuantizedWeight(integers, nearest.scale, nearest.zero_point, nearest.grid)


def _solve(work: Tensor, upper: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, block: int) -> Tensor:
    """Integers (as float32) of the columns from left to right; writes into `work`. All [groups, rows, columns].

    grid: the rows' own bits, where they differ, [groups, rows].
    """
    integers = torch.empty_like(work)
    columns = work.shape[2]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.empty_like(work[:, :, start:stop])
        for column in range(start, stop):
            value, s, z = work[:, :, column], scale[:, :, column], zero_point[:, :, column]
            rounded = quantize(value, s, z, grid)
            integers[:, :, column] = rounded
            error = (value - dequantize(rounded, s, z)) / upper[:, column, column, None]
            errors[:, :, column - start] = error
            work[:, :, column + 1 : stop] -= error[:, :, None] * upper[:, None, column, column + 1 : stop]
        work[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return integers


def _factor_of_inverse(hessian: Tensor, damping: float, where: str | None) -> Tensor:
    """Upper triangular U with Uᵀ U = (H + damping · mean diagonal)⁻¹, float32; more damping where that is needed.

    From one factorization: H = R Rᵀ with R upper triangular is the Cholesky factor of H read from the other end, and
    U = R⁻¹. In float64, as H is near singular wherever inputs depend on each other.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise CalibrationError("the inputs of this site are not finite", where=where)
    mean = hessian.diagonal(dim1=1, dim2=2).double().mean(1)
    while damping <= LARGEST_DAMPING:
        mirrored = hessian.flip(1, 2).double()
        mirrored.diagonal(dim1=1, dim2=2).add_((damping * mean)[:, None])
        lower, failed = torch.linalg.cholesky_ex(mirrored)
        del mirrored  # these matrices are the largest that a compile holds
        if not bool(failed.any()):
            identity = torch.eye(lower.shape[1], dtype=lower.dtype, device=lower.device).expand_as(lower)
            return torch.linalg.solve_triangular(lower, identity, upper=False).flip(1, 2).float()
        damping = max(10 * damping, SMALLEST_RAISE)
    raise CalibrationError(
        f"the Hessian of this site's inputs cannot be factored, with a damping of up to {LARGEST_DAMPING:g}",
        where=where,
        hint="use more calibration samples, or leave the site out of gptq with a rule's `passes`",
    )


def _by_column(values: Tensor, weight: Tensor) -> Tensor:
    """Scales or zero points, [] or [out] or [out, parts], for every column of a weight [groups, rows, columns]."""
    if values.dim() == 0:
        return values.expand_as(weight)
    values = values.reshape(*weight.shape[:2], -1)
    return values.repeat_interleave(weight.shape[2] // values.shape[2], 2)


def _permuted(values: Tensor, order: Tensor) -> Tensor:
    """[groups, rows, columns] with the columns of every group in `order`, [groups, columns]."""
    return values.gather(2, order[:, None, :].expand_as(values))
