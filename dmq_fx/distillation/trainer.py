"""The loop: one optimizer step for each step of the sampler, along trajectories of the full-precision model.

EfficientDM (arXiv:2310.03270), section on fine-tuning, with the learning rates of its scale-aware optimization, and
MPQ-DM's relation distillation (arXiv:2412.11549).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.reconstruction import reproducible
from dmq_fx.calibration.streaming import nearest_slot
from dmq_fx.distillation.feature import find_feature
from dmq_fx.distillation.optimizer import StudentOptimizer
from dmq_fx.distillation.options import DistillationOptions
from dmq_fx.distillation.relation import FeatureDistance
from dmq_fx.distillation.student import Student, Teacher
from dmq_fx.distillation.trajectory import Trajectories, find_guidance, joined, same_rows
from dmq_fx.errors import CalibrationError
from dmq_fx.program.program import PassContext, Program

JUDGED = 2
"""Trajectories that the beginning and the end are compared on; none is learned from."""


@dataclass
class Step:
    """What the denoiser calls of one sampler step gave, in both models."""

    teacher: list[Tensor] = field(default_factory=list)
    student: list[Tensor] = field(default_factory=list)
    teacher_feature: list[Tensor] = field(default_factory=list)
    student_feature: list[Tensor] = field(default_factory=list)
    slots: list[Tensor] = field(default_factory=list)


class Trainer:
    """A student that learns, and how far it is.

    trajectories: how many of them are learned from. steps: of a trajectory (`sampler_steps`). history: mean losses of
    those so far, [task, distance] each.
    """

    def __init__(
        self,
        program: Program,
        student: Student,
        options: DistillationOptions,
        context: PassContext,
        *,
        trajectories: int,
        steps: int,
        speed: tuple[float, float, float],
    ) -> None:
        assert context.sampler is not None
        self.student = student
        self.trajectories = trajectories
        self.history: list[list[float]] = []
        self._program = program
        self._options = options
        self._context = context
        compared = options.distance != "none"
        self._teacher = Teacher(program, feature=options.feature if compared else None)
        self._distance = None
        if compared:
            if options.window > steps:
                raise CalibrationError(
                    f"features are averaged over windows of {options.window} sampler steps, a trajectory has {steps}",
                    where="passes.lora_distill.window",
                    hint="use a smaller window, more calibration.steps, or distance: none",
                )
            axis = find_feature(program, options.feature).channel_axis
            self._distance = FeatureDistance(options.distance, options.window, axis, options.max_positions)
        self.steps = steps
        self.optimizer = StudentOptimizer(student, options, iterations=trajectories * self.steps, speed=speed)
        self._sampler = Trajectories(
            context.sampler,
            program.traced,
            batch=options.batch,
            seed=context.seed,
            predict=self._predict,
            step=self._finish_step,
        )
        self._learning = True
        self._step = Step()
        self._losses: list[list[float]] = []
        self.guided = False

    def run(self) -> None:
        """Learn from the trajectories that are left, keeping a checkpoint after each."""
        self._restore()
        while len(self.history) < self.trajectories:
            task, distance = self._trajectory(len(self.history))
            self.history.append([task, distance])
            if self._context.checkpoint is not None:
                last = len(self.history) == self.trajectories
                self._context.checkpoint.save(self._state, {"history": self.history}, force=last)

    def judge(self) -> float:
        """Mean task loss of a prediction's element on trajectories that nothing is learned from."""
        self._learning = False
        try:
            with torch.no_grad():
                return sum(self._trajectory(-1 - number)[0] for number in range(JUDGED)) / JUDGED
        finally:
            self._learning = True

    def _trajectory(self, number: int) -> tuple[float, float]:
        """Mean squared error of a prediction's element, and mean distance of a row, over one trajectory."""
        if self._distance is not None:
            self._distance.reset()
        self._losses.clear()
        # numbers below 0 are those of the judge: they begin behind all that are learned from
        with reproducible(torch.device(self._context.device)):
            self._sampler.run(number if number >= 0 else self.trajectories - 1 - number)
        if len(self._losses) != self.steps:
            raise CalibrationError(
                f"the sampler took {len(self._losses)} steps, and before it was {self.steps}",
                where="lora_distill",
                hint="ranges of sampler steps are learned for samplers that take the same steps every time",
            )
        rows = [row[1] for row in self._losses if not math.isnan(row[1])]
        return sum(row[0] for row in self._losses) / self.steps, sum(rows) / len(rows) if rows else 0.0

    def _predict(self, arguments: tuple[Tensor, ...]) -> Tensor:
        """Run both models; the sampler goes on with the teacher's prediction, or the student's if that is asked for."""
        exact, exact_feature = self._teacher(arguments)
        with torch.set_grad_enabled(self._learning):
            found, feature = self.student(arguments)
        step = self._step
        step.teacher.append(exact)
        step.student.append(found)
        if exact_feature is not None and feature is not None:
            step.teacher_feature.append(exact_feature)
            step.student_feature.append(feature)
        slot = nearest_slot(self._program, arguments)
        if slot is not None:
            step.slots.append(slot)
        own = self._options.trajectory == "student" and self._learning
        return (found.detach() if own else exact).clone()  # pipelines may write into what they are given

    def _finish_step(self, guided: Tensor) -> None:
        """Take the losses of a sampler step and, while learning, an optimizer step."""
        step, self._step = self._step, Step()
        if not step.teacher:
            return  # schedulers that take several steps for one prediction
        exact = joined(step.teacher)
        with torch.set_grad_enabled(self._learning):  # samplers run without gradients
            found = joined(step.student)
        own = exact if self._options.trajectory == "teacher" or not self._learning else found.detach()
        guidance = find_guidance(same_rows(own, guided, None), guided, self._options.batch)
        self.guided = self.guided or guidance is not None
        with torch.set_grad_enabled(self._learning):
            error = same_rows(found, guided, guidance).float() - same_rows(exact, guided, guidance).float()
            loss, elements, of_row = error.square().sum(), error.numel(), math.nan
            mean = self._finite(float(loss.detach()) / elements)
            if self._options.task_loss == "mean":
                loss = loss / elements
            if self._distance is not None:
                distance = self._distance.add(joined(step.teacher_feature), joined(step.student_feature))
                if distance is not None:
                    total, rows = distance
                    of_row = float(total.detach()) / rows
                    total = total if self._options.task_loss == "sum" else total / rows
                    if self._options.distance_gradient:
                        loss = loss + self._options.distance_weight * total
        self._losses.append([mean, of_row])
        if self._learning:
            self._learn(loss, mean, torch.cat(step.slots).unique() if step.slots else None)

    def _learn(self, loss: Tensor, mean: float, slots: Tensor | None) -> None:
        done = len(self.history) * self.steps + len(self._losses)
        self.optimizer.step(loss, done - 1, slots)
        shown = f"distilling · loss {mean:.3g}"
        self._context.progress(shown, done, self.trajectories * self.steps)

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        done = len(self.history) * self.steps + len(self._losses)
        raise CalibrationError(
            f"the loss is {loss} after {done} iterations of lora_distill",
            where="passes.lora_distill",
            hint="lower learning_rate and activation_learning_rate" if done else "check the model in full precision",
        )

    def _state(self) -> dict[str, Tensor]:
        values = {f"value.{name}": parameter.detach() for name, parameter in self.student.trainable()}
        return values | self.optimizer.state()

    def _restore(self) -> None:
        saved = self._context.checkpoint.load() if self._context.checkpoint is not None else None
        if saved is None:
            return
        tensors, facts = saved
        for name, parameter in self.student.trainable():
            parameter.data.copy_(tensors[f"value.{name}"])
        self.optimizer.restore(tensors)
        self.history = [list(row) for row in facts["history"]]

    def report(self) -> dict[str, Any]:
        """Losses by trajectory, and what they were taken of."""
        found = {
            "trajectories": self.trajectories,
            "iterations": self.trajectories * self.steps,
            "guided": self.guided,
            "task_loss": [float(f"{row[0]:.6g}") for row in self.history],
        }
        if self._distance is not None:
            found["distance"] = [float(f"{row[1]:.6g}") for row in self.history]
        return found
