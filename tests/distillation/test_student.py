"""The student computes what the program will (mpq-dm T15, T18 to T20), and learns nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dmq_fx.distillation.options import DistillationOptions
from dmq_fx.distillation.student import Student
from dmq_fx.pipeline import advance
from dmq_fx.planning import PlannedSite
from dmq_fx.program import Program

OPTIONS = DistillationOptions(rank=4)


def arguments(rows: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([750, 250, 1])[:rows]


def sites(program: Program) -> list[PlannedSite]:
    return [planned for planned in program.plan.for_pass("lora_distill") if planned.weight]


def student_of(program: Program, options: DistillationOptions = OPTIONS, *, feature: bool = False) -> Student:
    return Student(program, sites(program), options, 0, feature=feature)


def disturb(student: Student, amount: float = 0.05) -> None:
    """Move everything that is learned, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in student.trainable():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.startswith("b."):
                parameter.add_(noise * amount)
            elif name.endswith("zero_point"):
                parameter.add_(noise * 2)
            else:
                parameter.mul_(1 + amount * noise)
    student.clamp_()


def scaled(program: Program) -> None:
    """Equivalent scaling of every input that can have one."""
    from dmq_fx.program.scaling import channel_axis

    for activation in program.activations:
        axis = channel_axis(program, activation)
        if axis is not None:
            channels = program.nodes[activation.producer].meta["val"].shape[axis]
            program.input_scales[activation.index] = torch.linspace(0.5, 2.0, channels)


@pytest.mark.parametrize("gamma", [False, True])
def test_begins_as_the_program_without_learning(make: Any, gamma: bool) -> None:
    program, context = make(before=scaled if gamma else lambda program: None)
    with torch.no_grad():
        found = student_of(program)(arguments())[0]
    advance(program, "quantized", context)
    wanted = program.graph_module(*arguments())[0]
    if gamma:  # 1 / gamma goes into norms: the same up to float rounding, which may take a value to the next integer
        assert float((found - wanted).abs().mean()) < 1e-3 * float(wanted.abs().mean())
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("gamma", [False, True])
def test_what_is_exported_is_what_was_learned(make: Any, gamma: bool) -> None:
    program, context = make(before=scaled if gamma else lambda program: None)
    student = student_of(program)
    with torch.no_grad():
        before = student(arguments())[0]
        disturb(student)
        found = student(arguments())[0]
    student.export()
    program.states.add("assigned")
    advance(program, "quantized", context)
    wanted = program.graph_module(*arguments())[0]
    assert float((found - before).abs().mean()) > 0.05 * float(wanted.abs().mean())
    if gamma:
        assert float((found - wanted).abs().mean()) < 1e-3 * float(wanted.abs().mean())
    else:
        assert torch.equal(found, wanted)


def test_only_low_ranks_scales_and_ranges_are_learned(make: Any) -> None:
    program, _ = make()
    student = student_of(program)
    names = {name for name, _ in student.module.named_parameters() if not name.startswith("dmq.")}
    student(arguments())[0].square().sum().backward()
    graph = dict(student.module.named_parameters())
    assert not any(graph[name].requires_grad for name in names)
    learned = dict(student.trainable())
    assert all(parameter.grad is not None for parameter in learned.values())
    boundary = [p for p in program.plan.sites if p.scheme == "boundary"]
    assert boundary and not {p.site.weight for p in boundary} & set(student.weights)
    ranged = {name for index in student._columns for name in program.activations[index].sites}
    assert ranged == {planned.name for planned in sites(program)}


def test_gradients_of_ranges_are_those_of_the_timestep(make: Any) -> None:
    """Slots come from the timestep: every sample reaches its own row, and no other."""
    program, _ = make()
    student = student_of(program)
    disturb(student)
    timesteps = program.timesteps
    for slots in ([1], [0, 2]):
        for _, parameter in student.trainable():
            parameter.grad = None
        x = arguments(len(slots))[0]
        student((x, timesteps[slots].long()))[0].square().sum().backward()
        gradient = student.tables[0].scale.grad
        assert gradient is not None and len(student.tables[0].scale) == len(timesteps)
        assert gradient.abs().sum(1).nonzero().flatten().tolist() == slots
        zero = student.tables[0].zero_point.grad
        assert zero is not None and set(zero.abs().sum(1).nonzero().flatten().tolist()) <= set(slots)


def test_integer_base_begins_with_the_same_integers(make: Any) -> None:
    program, _ = make()
    plain, base = student_of(program), student_of(program, DistillationOptions(rank=4, base="int"))
    for name, weight in plain.weights.items():
        assert torch.equal(base.weights[name].integers().integers, weight.start.integers)
        torch.testing.assert_close(base.weights[name].base, weight.start.dequantized())


def test_ranges_stay_on_the_grid(make: Any) -> None:
    program, _ = make()
    student = student_of(program)
    table = student.tables[0]
    table.zero_point.data.fill_(1e6)
    table.scale.data.fill_(-1)
    student.clamp_()
    student.export()
    for index in student._columns:
        found = program.qparams[index]
        assert found.zero_point.dtype == torch.int64 and bool((found.zero_point == 63).all())
        assert bool((found.scale > 0).all())
