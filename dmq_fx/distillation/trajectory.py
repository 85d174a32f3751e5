"""Data-free training inputs: trajectories of the pipeline's own sampler, one after another, from noise of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmq_fx.errors import CalibrationError
from dmq_fx.sampling import Sampler, answer_calls, watch_predictions
from dmq_fx.tracing import TracedModel, bind_inputs

FIRST_NOISE = 2**31
"""Noise that is learned from has seeds from here on: calibration and evaluation have those below. Of a seed, torch's
generators on CPUs use 32 bits."""

IMAGES = 2**26
"""Images that a run may learn from."""

FIT = 0.02
"""Largest part of a guided prediction that its two halves may leave unexplained."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance as the pipeline applies it: first * weight + second * (1 - weight), of [batch, ...]."""

    weight: float

    def __call__(self, rows: Tensor) -> Tensor:
        """What the scheduler is given for predictions of both halves, [2 batch, ...]."""
        first, second = rows.chunk(2)
        return second + self.weight * (first - second)


def find_guidance(rows: Tensor, guided: Tensor, images: int) -> Guidance | None:
    """The guidance that makes `guided` of `rows`; None if it is none, or not a combination of two halves.

    rows: predictions of a sampler step, [rows, channels, ...]. guided: what the scheduler was given, with as many
    channels or fewer (without a variance), and with one row an image or one for each row.
    """
    if len(rows) != 2 * images or len(guided) not in (images, 2 * images):
        return None
    first, second = rows.double().chunk(2)
    target = guided[:images].double()
    difference = first - second
    size = difference.square().sum()
    if not bool(size > 0):
        return None
    weight = ((target - second) * difference).sum() / size
    left = (second + weight * difference - target).norm()
    if not bool(left <= FIT * target.norm()):
        return None
    return Guidance(float(weight))


def first_noise(seed: int) -> int:
    """Seed of the noise of a run's first image; those of other runs are so far away that hardly any two overlap."""
    digest = hashlib.sha256(f"trajectories {seed}".encode()).digest()
    return FIRST_NOISE + int.from_bytes(digest[:8], "big") % (FIRST_NOISE - IMAGES)


class Trajectories:
    """Runs the sampler with predictions of the caller's.

    predict: called with the graph's inputs for every denoiser call; gives what the pipeline goes on with. step: called
    with what the scheduler is given, after guidance, before every scheduler step.
    """

    def __init__(
        self,
        sampler: Sampler,
        traced: TracedModel,
        *,
        batch: int,
        seed: int,
        predict: Callable[[tuple[Tensor, ...]], Tensor],
        step: Callable[[Tensor], None],
    ) -> None:
        self._sampler = sampler.with_options(batch=batch, seed=first_noise(seed))
        self._batch = batch
        self._traced = traced
        self._predict = predict
        self._step = step

    def run(self, number: int) -> Tensor:
        """Trajectory `number`, from 0: it depends on nothing but that, the seed and the predictions. Its images."""

        def answer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
            return self._predict(bind_inputs(self._traced, args, kwargs))

        sampler, first = self._sampler, number * self._batch
        with answer_calls(sampler.loaded.denoiser, answer), watch_predictions(sampler.scheduler, self._step):
            (images,) = sampler.run(first + self._batch, first=first)
        return images


def sampler_steps(
    sampler: Sampler,
    traced: TracedModel,
    *,
    timesteps: int,
    calls: int,
    predict: Callable[[tuple[Tensor, ...]], Tensor],
) -> int:
    """How many steps the scheduler takes in a trajectory.

    timesteps, calls: how many different timesteps and denoiser calls a calibration batch had. There are as many steps
    where both are the same; else (two calls for a step with guidance, two steps at one timestep as PNDM takes them, no
    timestep) a trajectory of one image is taken with `predict`, the full-precision model.
    """
    if timesteps == calls > 0:
        return calls
    called, steps = False, 0

    def answer(arguments: tuple[Tensor, ...]) -> Tensor:
        nonlocal called
        called = True
        return predict(arguments).clone()

    def step(guided: Tensor) -> None:
        nonlocal called, steps
        steps, called = steps + called, False

    Trajectories(sampler, traced, batch=1, seed=0, predict=answer, step=step).run(0)
    return max(1, steps)


def check_timestep(traced: TracedModel, *, per_timestep: bool) -> None:
    """Raise CalibrationError where samples cannot have ranges of their own timestep."""
    if per_timestep and not all(entry.batched for entry in traced.inputs if entry.name == traced.timestep):
        raise CalibrationError(
            "lora_distill learns a range for each timestep, but the timestep of this model does not follow the batch",
            where=traced.class_name,
            hint="use per_timestep: false for activations, or a model that takes one timestep a sample",
        )


def same_rows(rows: Tensor, guided: Tensor, guidance: Guidance | None) -> Tensor:
    """Predictions as the loss compares them: guided, and without channels that the scheduler does not take."""
    if rows.dim() > 1 and guided.dim() == rows.dim():
        rows = rows.narrow(1, 0, min(guided.shape[1], rows.shape[1]))
    return rows if guidance is None else guidance(rows)


def joined(parts: list[Tensor]) -> Tensor:
    """Rows of the denoiser calls of one sampler step."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
