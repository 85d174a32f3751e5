"""AdamW for the student: a learning rate for each layer, ranges by sampler step, linear decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.distillation.lora import LoraWeight
from dmq_fx.distillation.options import DistillationOptions
from dmq_fx.distillation.student import Student

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class StudentOptimizer:
    """Everything the student learns with, by one schedule: linear to 0 over `iterations`.

    speed: what learning rates of weights, weight scales and activations are multiplied with, in shorter runs.
    """

    def __init__(
        self, student: Student, options: DistillationOptions, *, iterations: int, speed: tuple[float, float, float]
    ) -> None:
        self._student = student
        self._iterations = iterations
        groups: list[dict[str, Any]] = []
        rates = lora_rates(list(student.weights.values()), options)
        for weight, rate in zip(student.weights.values(), rates, strict=True):
            decay = options.weight_decay
            groups.append({"params": [weight.a, weight.b], "lr": rate * speed[0], "weight_decay": decay})
        decay = options.quantizer_weight_decay
        scales = [weight.scale for weight in student.weights.values()]
        for scale in scales:
            scale.requires_grad_(options.learn_weight_scale)
        of_weights = [*(scales if options.learn_weight_scale else []), *student.weight_zero_points()]
        if of_weights:
            rate = options.weight_scale_learning_rate * speed[1]
            groups.append({"params": of_weights, "lr": rate, "weight_decay": decay})
        rate = options.activation_learning_rate * speed[2]
        ranges: list[nn.Parameter] = []
        for table in student.tables:
            table.zero_point.requires_grad_(options.zero_point != "fixed")
            ranges += [table.scale, *([table.zero_point] if table.zero_point.requires_grad else [])]
        self._own: list[tuple[nn.Parameter, dict[str, Tensor]]] = []
        self._own_rate, self._own_decay = rate, decay
        if options.slot_moments == "own":
            self._own = [(p, _moments(p)) for p in ranges if len(p) > 1]
            ranges = [p for p in ranges if len(p) == 1]
        if ranges:
            groups.append({"params": ranges, "lr": rate, "weight_decay": decay})
        self._adam = torch.optim.AdamW(groups, lr=0.0, fused=True) if groups else None
        self._rates: list[float] = [group["lr"] for group in groups]

    def step(self, loss: Tensor, iteration: int, slots: Tensor | None) -> None:
        """Take the gradients of `loss` and move; slots: those of the sampler step."""
        left = 1 - iteration / self._iterations
        for _, parameter in self._student.trainable():
            parameter.grad = None
        loss.backward()
        if self._adam is not None:
            for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
                group["lr"] = rate * left
            self._adam.step()
        for parameter, moments in self._own:
            if parameter.grad is not None and slots is not None:
                adam_rows(parameter.data, parameter.grad, moments, slots, self._own_rate * left, self._own_decay)
        self._student.clamp_()

    def state(self) -> dict[str, Tensor]:
        """Moments by name of the parameter."""
        found = {}
        for name, moments in self._all_moments():
            found |= {f"{kind}.{name}": moments[kind] for kind in MOMENTS if kind in moments}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the moments of `state`."""
        own = {id(parameter): moments for parameter, moments in self._own}
        for name, parameter in self._student.trainable():
            if f"step.{name}" not in tensors:
                continue
            found = {kind: tensors[f"{kind}.{name}"].to(parameter.device, torch.float32) for kind in MOMENTS}
            if id(parameter) in own:
                own[id(parameter)].update(found)
            elif self._adam is not None:
                self._adam.state[parameter] = found

    def _all_moments(self) -> list[tuple[str, dict[str, Tensor]]]:
        own = {id(parameter): moments for parameter, moments in self._own}
        found = []
        for name, parameter in self._student.trainable():
            if id(parameter) in own:
                found.append((name, own[id(parameter)]))
            elif self._adam is not None and parameter in self._adam.state:
                found.append((name, self._adam.state[parameter]))
        return found


def lora_rates(weights: list[LoraWeight], options: DistillationOptions) -> list[float]:
    """Learning rate of every layer's update: its mean weight scale times the option (EfficientDM, scale-aware LoRA)."""
    scales = []
    for weight in weights:
        scale = float(weight.scale.detach().mean())
        if options.scale_domain == "unscaled" and weight.gamma is not None:
            scale /= float(weight.gamma.mean())
        scales.append(scale + options.scale_offset)
    if not options.scale_aware and scales:
        scales = [sum(scales) / len(scales)] * len(scales)
    return [scale * options.learning_rate for scale in scales]


def adam_rows(
    values: Tensor, gradient: Tensor, moments: dict[str, Tensor], rows: Tensor, rate: float, decay: float
) -> None:
    """One AdamW step of some rows of a table, in place; the others, and their moments, stay as they are."""
    g = gradient[rows]
    moments["step"][rows] += 1
    first = moments["exp_avg"][rows] * 0.9 + g * 0.1
    second = moments["exp_avg_sq"][rows] * 0.999 + g.square() * 0.001
    moments["exp_avg"][rows], moments["exp_avg_sq"][rows] = first, second
    count = moments["step"][rows][:, None]
    update = first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
    values[rows] = values[rows] * (1 - rate * decay) - rate * update


def _moments(parameter: Tensor) -> dict[str, Tensor]:
    zeros = torch.zeros_like(parameter)
    return {"step": torch.zeros(len(parameter), device=parameter.device), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
