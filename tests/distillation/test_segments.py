"""Gradient checkpointing: the same gradients, bit by bit, from less that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dmq_fx.distillation.options import DistillationOptions
from dmq_fx.distillation.segments import Segment
from dmq_fx.distillation.student import Student
from dmq_fx.program import Program


def student_of(program: Program, *, checkpointing: bool) -> Student:
    options = DistillationOptions(rank=4, kernel="per_tap", gradient_checkpointing=checkpointing)
    sites = [planned for planned in program.plan.for_pass("lora_distill") if planned.weight]
    student = Student(program, sites, options, 0, feature=True)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in student.trainable():
            if name.startswith("b."):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return student


def arguments(program: Program, rows: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return x, program.timesteps[torch.arange(rows)].long()


def loss_of(student: Student, program: Program) -> Tensor:
    prediction, feature = student(arguments(program))
    assert feature is not None
    return prediction.square().sum() + feature.abs().sum()


def test_gradients_are_the_same(make: Any) -> None:
    """Also those of ranges, whose slots are computed again: each reaches the row of its own timestep."""
    program, _ = make()
    gradients = []
    for checkpointing in (False, True):
        student = student_of(program, checkpointing=checkpointing)
        loss = loss_of(student, program)
        loss.backward()
        found = {name: parameter.grad for name, parameter in student.trainable()}
        assert all(gradient is not None for gradient in found.values())
        gradients.append({"loss": loss.detach(), **found})
        assert student.tables[0].scale.grad is not None
        assert student.tables[0].scale.grad.abs().sum(1).nonzero().flatten().tolist() == [0, 1, 2]
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])  # type: ignore[arg-type]
    assert any(isinstance(part, Segment) for part in student.module.modules())


class Kept:
    """Bytes of what is kept for backward passes: every storage once, without those of the student and its inputs."""

    def __init__(self, student: Student, program: Program) -> None:
        own = [*student.module.parameters(), *student.module.buffers(), *arguments(program)]
        own += [parameter for _, parameter in student.trainable()]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._sizes: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no address is used twice

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._sizes[storage.data_ptr()] = storage.nbytes()
            self._alive.append(tensor)
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    @contextmanager
    def watching(self) -> Iterator[None]:
        with saved_tensors_hooks(self.add, lambda tensor: tensor):
            yield


def tensors_in(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (tuple, list)):
        for one in given:
            yield from tensors_in(one)


def test_less_is_kept(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs of the segments and what the largest of them keeps while it is taken again, beside all of it."""
    program, _ = make()
    plain = student_of(program, checkpointing=False)
    everything = Kept(plain, program)
    with everything.watching():
        loss_of(plain, program)

    student = student_of(program, checkpointing=True)
    inputs, outside, largest = Kept(student, program), Kept(student, program), 0
    forward = Segment.forward

    def watched(segment: Segment, *given: Any) -> Any:
        nonlocal largest
        for tensor in tensors_in(given):
            inputs.add(tensor)
        inside = Kept(student, program)
        with inside.watching():
            segment.part(*given)
        largest = max(largest, inside.bytes)
        return forward(segment, *given)

    monkeypatch.setattr(Segment, "forward", watched)
    with outside.watching():
        loss_of(student, program)
    assert largest > 0
    assert inputs.bytes + max(outside.bytes, largest) < 0.6 * everything.bytes


def test_nothing_is_taken_twice_without_gradients(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = make()
    student, plain = (student_of(program, checkpointing=value) for value in (True, False))
    monkeypatch.setattr("dmq_fx.distillation.segments.checkpoint", None)
    with torch.no_grad():
        assert torch.equal(student(arguments(program))[0], plain(arguments(program))[0])
