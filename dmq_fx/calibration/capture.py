"""Calibration inputs: what the denoiser sees while the model's own sampler runs in full precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.store import CalibrationCache, CalibrationSet
from dmq_fx.errors import CalibrationError
from dmq_fx.models import LoadedModel
from dmq_fx.recipe.language import Calibration
from dmq_fx.sampling import Sampler, SamplerOptions, watch_inputs
from dmq_fx.sampling.identity import plain, scheduler_record, surroundings
from dmq_fx.tracing import TracedModel, bind_inputs, describe_inputs

Progress = Callable[[str, int, int], None]


def calibration_set(
    loaded: LoadedModel,
    traced: TracedModel,
    calibration: Calibration,
    *,
    identity: str,
    cache: CalibrationCache,
    progress: Progress,
    inputs: Mapping[str, Any] | None = None,
) -> CalibrationSet:
    """The inputs for `calibration`, from the cache or sampled now.

    The key covers everything that decides them: the model's fingerprint, the scheduler with its configuration,
    steps, samples, batch, prompts and seed.
    """
    sampler = Sampler(loaded, SamplerOptions.of(calibration), inputs)
    key = cache.key_of(
        model=identity,
        inputs=describe_inputs(traced),
        surroundings=surroundings(loaded, inputs),
        versions={name: version(name) for name in ("torch", "diffusers")},
        scheduler=scheduler_record(sampler),
        **plain(asdict(calibration)),
    )
    found = cache.get(key)
    if found is not None:
        return found
    return _capture(sampler, traced, calibration, key, cache, progress)


def _capture(
    sampler: Sampler,
    traced: TracedModel,
    calibration: Calibration,
    key: str,
    cache: CalibrationCache,
    progress: Progress,
) -> CalibrationSet:
    steps: list[dict[str, Tensor]] = []
    total = -(-calibration.samples // calibration.batch)

    def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = bind_inputs(traced, args, kwargs)
        steps.append({name: _kept(t) for name, t in zip(traced.input_paths, tensors, strict=True)})

    with cache.writer(key, metadata={"batches": total}) as writer, watch_inputs(sampler.loaded.denoiser, keep):
        for index, _ in enumerate(sampler.run(calibration.samples)):
            if not steps:
                raise CalibrationError("the sampler never called the denoiser", where=sampler.loaded.origin)
            if index == 0 and traced.timestep is not None:
                writer.update_metadata(timesteps=step_timesteps(traced, steps))
            writer.add_batch(index, steps)
            steps.clear()
            progress("sampling", index + 1, total)
    found = cache.get(key)
    if found is None:
        raise CalibrationError("the calibration set could not be read back", where=str(cache.root))
    return found


def _kept(tensor: Tensor) -> Tensor:
    """A copy of an input in plain memory: pipelines pass views, and may write into their tensors later."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def step_timesteps(traced: TracedModel, steps: list[dict[str, Tensor]]) -> list[float]:
    """The model timestep of every sampler step, in the order they are visited (a step has one for all samples)."""
    path = next(entry.path for entry in traced.inputs if entry.name == traced.timestep)
    return torch.cat([step[path].float().reshape(-1)[:1] for step in steps]).tolist()
