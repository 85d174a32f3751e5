"""The loop: what moves, by which rates, how far (mpq-dm T19, T21, T22, T24)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler
from torch import Tensor

from dmq_fx.distillation.optimizer import StudentOptimizer, adam_rows, lora_rates
from dmq_fx.distillation.options import DistillationOptions
from dmq_fx.distillation.student import Student
from dmq_fx.distillation.trainer import Trainer
from dmq_fx.distillation.trajectory import sampler_steps
from dmq_fx.errors import CalibrationError
from dmq_fx.program import PassContext, Program
from dmq_fx.sampling import Sampler, SamplerOptions
from dmq_fx.sampling.loop import DenoiserLoop

SPEED = (50.0, 50.0, 10.0)
SKIP = {"skip_prk_steps": True}


def trainer_of(
    program: Program, context: PassContext, trajectories: int = 2, speed: Any = SPEED, **options: Any
) -> Trainer:
    steps = options.pop("steps", len(program.timesteps))
    found = DistillationOptions(**{"rank": 4, "batch": 2, "distance": "none", **options})
    sites = [planned for planned in program.plan.for_pass("lora_distill") if planned.weight]
    student = Student(program, sites, found, context.seed, feature=found.distance != "none")
    return Trainer(program, student, found, context, trajectories=trajectories, steps=steps, speed=speed)


def values(trainer: Trainer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.student.trainable()}


def test_the_student_comes_closer_and_the_teacher_stays(make: Any) -> None:
    program, context = make()
    before = {name: tensor.clone() for name, tensor in program.traced.graph_module.state_dict().items()}
    trainer = trainer_of(program, context, trajectories=6, speed=(1.0, 1.0, 1.0), learning_rate=0.1)
    start, loss = values(trainer), trainer.judge()
    trainer.run()
    assert trainer.judge() < 0.85 * loss
    assert len(trainer.history) == 6 and trainer.report()["iterations"] == 6 * 4
    after = program.traced.graph_module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    moved = {name for name, value in values(trainer).items() if not torch.equal(value, start[name])}
    assert moved == set(start)


def test_judging_changes_nothing(make: Any) -> None:
    program, context = make()
    trainer = trainer_of(program, context)
    start = values(trainer)
    assert trainer.judge() == trainer.judge()
    assert all(torch.equal(value, start[name]) for name, value in values(trainer).items())
    assert trainer.history == []


def test_the_loss_is_a_sum(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all elements, or their mean; both report the mean."""
    losses: dict[str, list[float]] = {"sum": [], "mean": []}
    for kind, found in losses.items():
        program, context = make()
        trainer = trainer_of(program, context, trajectories=1, task_loss=kind)
        monkeypatch.setattr(trainer.optimizer, "step", lambda loss, *rest, found=found: found.append(float(loss)))
        trainer.run()
    elements = 2 * 3 * 16 * 16
    assert losses["sum"] == pytest.approx([loss * elements for loss in losses["mean"]], rel=1e-4)
    assert trainer.history[0][0] == pytest.approx(sum(losses["mean"]) / 4, rel=1e-4)


def test_rates_are_mean_scales(make: Any) -> None:
    program, context = make()
    weights = list(trainer_of(program, context).student.weights.values())
    means = [float(weight.scale.detach().mean()) for weight in weights]
    assert lora_rates(weights, DistillationOptions()) == pytest.approx([mean / 2500 for mean in means])
    offset = lora_rates(weights, DistillationOptions(scale_offset=0.01))
    assert offset == pytest.approx([(mean + 0.01) / 2500 for mean in means])
    for weight in weights:
        weight.gamma = torch.tensor([1.0, 3.0])
    assert lora_rates(weights, DistillationOptions()) == pytest.approx([mean / 5000 for mean in means])
    assert lora_rates(weights, DistillationOptions(scale_domain="scaled")) == pytest.approx([m / 2500 for m in means])
    for weight in weights:
        weight.gamma = None
    same = lora_rates(weights, DistillationOptions(scale_aware=False))
    assert same == pytest.approx([sum(means) / len(means) / 2500] * len(means))


def test_rates_fall_to_zero(make: Any) -> None:
    program, context = make()
    trainer = trainer_of(program, context, trajectories=2)
    adam = trainer.optimizer._adam
    assert adam is not None
    seen: list[float] = []
    step = adam.step
    adam.step = lambda *args, **kwargs: (seen.append(adam.param_groups[-1]["lr"]), step(*args, **kwargs))[1]
    trainer.run()
    assert seen == pytest.approx([5e-3 * (1 - done / 8) for done in range(8)])


def test_fixed_parts_stay(make: Any) -> None:
    program, context = make()
    trainer = trainer_of(program, context, learn_weight_scale=False, zero_point="fixed")
    start = values(trainer)
    trainer.run()
    for name, value in values(trainer).items():
        fixed = name.startswith("scale.") or name.endswith("zero_point")
        assert torch.equal(value, start[name]) is fixed, name


def test_a_distance_without_gradient_teaches_as_none(make: Any) -> None:
    found = []
    for options in (
        {"distance": "none"},
        {"distance": "relation", "distance_gradient": False},
        {"distance": "relation"},
    ):
        program, context = make()
        trainer = trainer_of(program, context, **options)
        trainer.run()
        found.append(values(trainer))
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
    assert not all(torch.equal(found[0][name], value) for name, value in found[2].items())
    assert all(row[1] > 0 for row in trainer.history)


def test_a_trajectory_of_the_students_own(make: Any) -> None:
    program, context = make()
    trainer = trainer_of(program, context, trajectory="student")
    trainer.run()
    other_program, other_context = make()
    other = trainer_of(other_program, other_context)
    other.run()
    assert trainer.history[0][0] != other.history[0][0]


def test_own_moments_leave_other_steps_alone(make: Any) -> None:
    program, context = make()
    for kind, rows in (("own", 1), ("shared", 4)):
        trainer = trainer_of(program, context, slot_moments=kind)
        table = trainer.student.tables[0]
        optimizer = trainer.optimizer
        for slot in (2, 1):
            start = table.scale.detach().clone()
            x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(slot))
            timestep = program.timesteps[[slot, slot]].long()
            loss = trainer.student((x, timestep))[0].square().sum()
            optimizer.step(loss, 0, torch.tensor([slot]))
        changed = (table.scale.detach() != start).any(1).nonzero().flatten().tolist()
        assert changed == ([1] if rows == 1 else [1, 2])


def test_rows_move_as_adamw_moves_them() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.Parameter(torch.randn(3, 4, generator=generator))
    table = plain.detach().clone()
    adam = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.02)
    zeros = torch.zeros(3, 4)
    moments = {"step": torch.zeros(3), "exp_avg": zeros.clone(), "exp_avg_sq": zeros.clone()}
    for _ in range(4):
        plain.grad = torch.randn(3, 4, generator=generator)
        adam.step()
        adam_rows(table, plain.grad, moments, torch.arange(3), 0.1, 0.02)
    torch.testing.assert_close(table, plain.detach())


def test_a_loss_that_is_not_finite_is_named(make: Any) -> None:
    program, context = make()
    trainer = trainer_of(program, context)
    weight = next(iter(trainer.student.weights.values()))
    weight.base = torch.full_like(weight.base, float("nan"))
    with pytest.raises(CalibrationError, match="the loss is nan after 0 iterations of lora_distill") as error:
        trainer.run()
    assert "check the model in full precision" in str(error.value)


def test_moments_are_restored(make: Any) -> None:
    program, context = make()
    for kind in ("own", "shared"):
        trainer = trainer_of(program, context, slot_moments=kind)
        trainer.run()
        state = trainer.optimizer.state()
        other = StudentOptimizer(trainer.student, DistillationOptions(slot_moments=kind), iterations=8, speed=SPEED)
        other.restore(state)
        assert other.state().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in other.state().items())


def guided_loop(self: DenoiserLoop, batch_size: int, num_inference_steps: int, generator: Any) -> Tensor:
    """A sampler with guidance in two calls a step, as video pipelines have it."""
    x = torch.stack([torch.randn(3, 16, 16, generator=one) for one in generator])
    self.scheduler.set_timesteps(num_inference_steps)
    for t in self.scheduler.timesteps:
        given = {"timestep": t.expand(batch_size), "return_dict": False}
        first, second = (self.denoiser(sample=x * factor, **given)[0] for factor in (1.0, 0.9))
        x = self.scheduler.step(second + 3 * (first - second), t, x, return_dict=False)[0]
    return x


def test_zero_points_of_weights_are_learned_by_an_option(make: Any) -> None:
    """At the rate of the weights' scales; they are part of what a checkpoint holds."""
    program, context = make()
    assert not any(name.startswith("zero_point.") for name in values(trainer_of(program, context)))
    trainer = trainer_of(program, context, trajectories=1, weight_zero_point="learned")
    start = values(trainer)
    trainer.run()
    names = {name for name in start if name.startswith("zero_point.")}
    assert len(names) == len(trainer.student.weights)
    moved = [(values(trainer)[name] - start[name]).abs().max() for name in names]
    assert 0 < float(max(moved)) <= 4 * SPEED[1] * 1e-6 * 1.01  # four steps, each of at most the rate
    assert {f"exp_avg.{name}" for name in names} <= trainer.optimizer.state().keys()


def test_two_calls_of_the_denoiser_are_one_step(make: Any, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are the scheduler's, not the denoiser's calls; one optimizer step each, on the guided prediction."""
    monkeypatch.setattr(DenoiserLoop, "__call__", guided_loop)
    program, context = make()
    sampler = Sampler(parts[0], SamplerOptions(steps=4, scheduler="ddim"))

    def predict(arguments: tuple[Tensor, ...]) -> Tensor:
        return program.traced.graph_module(*arguments)[0]

    assert sampler_steps(sampler, program.traced, timesteps=4, calls=8, predict=predict) == 4
    trainer = trainer_of(program, replace(context, sampler=sampler), trajectories=1, steps=4, distance="relation")
    trainer.run()
    assert trainer.report()["iterations"] == 4 and trainer.guided and trainer.history[0][1] > 0


def test_steps_are_counted_where_timesteps_do_not_tell(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program, context = make()

    def predict(arguments: tuple[Tensor, ...]) -> Tensor:
        raise AssertionError

    assert sampler_steps(context.sampler, program.traced, timesteps=3, calls=3, predict=predict) == 3
    monkeypatch.setattr("dmq_fx.sampling.sampler.make_scheduler", lambda name, current: PNDMScheduler.from_config(SKIP))
    sampler = context.sampler.with_options(scheduler="ddim")  # a loop that takes any scheduler
    for calls in (0, 5):
        found = sampler_steps(sampler, program.traced, timesteps=4, calls=calls, predict=lambda given: given[0])
        assert found == 5  # its second timestep comes twice


def test_a_window_longer_than_a_trajectory(make: Any) -> None:
    """It would never be full: no distance would be taken, and none learned from."""
    program, context = make()
    trainer_of(program, context, distance="relation", window=4)
    with pytest.raises(CalibrationError, match="windows of 5 sampler steps, a trajectory has 4") as error:
        trainer_of(program, context, distance="relation", window=5)
    assert "smaller window" in str(error.value)


def test_a_distance_that_was_not_taken_is_not_reported(make: Any) -> None:
    program, context = make()
    for distance in ("none", "l2"):
        trainer = trainer_of(program, context, trajectories=1, distance=distance)
        trainer.run()
        assert ("distance" in trainer.report()) == (distance == "l2")


def test_zero_points_are_judged_as_they_are_written(make: Any) -> None:
    program, context = make()
    trainer = trainer_of(program, context, trajectories=1, zero_point="float")
    trainer.run()
    unrounded = trainer.judge()
    trainer.student.round_zero_points()
    rounded = trainer.judge()
    trainer.student.export()
    sites = [planned for planned in program.plan.for_pass("lora_distill") if planned.weight]
    options = DistillationOptions(rank=4, batch=2, distance="none")
    written = Student(program, sites, options, context.seed, feature=False)
    tables = zip(written.tables, trainer.student.tables, strict=True)
    assert all(torch.equal(one.zero_point, other.zero_point) for one, other in tables)
    assert rounded != unrounded
