"""What else of the teacher the student is held to: the relations between the pixels of its last features.

MPQ-DM (arXiv:2412.11549), time-smoothed relation distillation: features are averaged over a window of consecutive
sampler steps (eq. 9), the cosine similarities of every pixel to all others are a distribution, and the loss is the
divergence KL(teacher | student), summed over pixels (eq. 10). The release takes it of detached features, which teaches
nothing; here it reaches the student's newest feature, and the older ones of the window are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

POOLS: dict[int, Callable[..., Any]] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}
"""Average pooling by the number of axes of the positions."""


class FeatureDistance:
    """Collects features of both models and gives their distance at the end of every window.

    kind: relation or l2. channel_axis: of the features. max_positions: most pixels that relations are taken between.
    """

    def __init__(self, kind: str, window: int, channel_axis: int, max_positions: int) -> None:
        self._kind = kind
        self._window = window
        self._axis = channel_axis
        self._max = max_positions
        self._teacher: list[Tensor] = []
        self._student: list[Tensor] = []

    def reset(self) -> None:
        """Forget the features of an unfinished window: no window goes over from one trajectory to the next."""
        self._teacher.clear()
        self._student.clear()

    def add(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, int] | None:
        """The summed distance and how many rows it is a sum of, after the last step of a window; else None.

        teacher, student: features of one sampler step, of the same shape. Gradients reach `student` of this call only.
        """
        self._teacher.append(teacher.detach().float())
        if len(self._teacher) < self._window:
            self._student.append(student.detach().float())
            return None
        older = [*self._student, student.float()]
        teachers, students = torch.stack(self._teacher).mean(0), torch.stack(older).mean(0)
        self.reset()
        if self._kind == "l2":
            return (students - teachers).square().sum(), teachers.numel()
        exact, rounded = (pixels(one, self._axis, self._max) for one in (teachers, students))
        return relation_distance(exact, rounded), exact.shape[0] * exact.shape[1]


def pixels(features: Tensor, channel_axis: int, limit: int) -> Tensor:
    """Features as [batch, positions, channels]; more than `limit` positions are average-pooled.

    Of images by rows and columns, of videos by frames too; of tokens, whose layout is not known, along their sequence.
    """
    moved = features.movedim(channel_axis, 1)
    sizes = tuple(moved.shape[2:])
    if prod(sizes) > limit and len(sizes) in POOLS:
        factor = next(f for f in count(2) if prod(max(1, size // f) for size in sizes) <= limit)
        moved = POOLS[len(sizes)](moved, tuple(max(1, size // factor) for size in sizes))
    return moved.flatten(2).transpose(1, 2) if moved.dim() > 2 else moved[:, None]


def relation_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """sum over batch and positions of KL(P_teacher | P_student), P the softmax of cosine similarities to all positions.

    teacher, student: [batch, positions, channels]; a scalar, in nats. Gradients reach `student` alone.
    """
    exact, rounded = (functional.normalize(one, dim=2, eps=1e-12) for one in (teacher.detach(), student))
    return _Divergence.apply(exact, rounded)  # type: ignore[return-value]


class _Divergence(torch.autograd.Function):
    """KL of relations between rows of length one, [batch, positions, channels], one sample after another.

    With S the similarities and P = softmax(S), the derivative by S_student is P_student - P_teacher: taken at once, so
    that no matrix of positions by positions is kept, and those of one sample are all that there are. Similarities are
    at most one, so that exp needs no maximum taken off.
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        total = student.new_zeros(())
        gradients = torch.empty_like(student)
        for exact, rounded, gradient in zip(teacher, student, gradients, strict=True):
            of_exact, of_rounded = exact @ exact.T, rounded @ rounded.T
            apart = of_exact - of_rounded
            shares, found = of_exact.exp_(), of_rounded.exp_()
            sums, found_sums = shares.sum(1, keepdim=True), found.sum(1, keepdim=True)
            shares /= sums
            total += apart.mul_(shares).sum() - torch.log(sums / found_sums).sum()
            found.div_(found_sums).sub_(shares)
            torch.addmm(found.T @ rounded, found, rounded, out=gradient)
        ctx.save_for_backward(gradients)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        (gradients,) = ctx.saved_tensors
        return None, gradients * gradient
