"""Trajectories are the pipeline's own (mpq-dm T21), and guidance is found from what the scheduler is given."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmq_fx.distillation.trajectory import Trajectories, check_timestep, find_guidance, first_noise, same_rows
from dmq_fx.errors import CalibrationError
from dmq_fx.sampling import Sampler, SamplerOptions


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_images_are_those_of_the_pipeline(parts: Any) -> None:
    """With the full-precision graph's predictions, bit by bit; and what was swapped is put back."""
    loaded, traced, *_ = parts
    given: list[Tensor] = []

    def predict(arguments: tuple[Tensor, ...]) -> Tensor:
        return traced.graph_module(*arguments)[0]

    sampler = Sampler(loaded, SamplerOptions(steps=4))
    trajectories = Trajectories(sampler, traced, batch=2, seed=5, predict=predict, step=given.append)
    found = [trajectories.run(number) for number in (0, 1, 0)]
    wanted = list(Sampler(loaded, SamplerOptions(steps=4, batch=2, seed=first_noise(5))).run(4))
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert torch.equal(found[2], found[0]) and not torch.equal(found[0], found[1])
    assert [tuple(one.shape) for one in given] == [(2, 3, 16, 16)] * 12
    assert "forward" not in vars(loaded.denoiser) and "step" not in vars(sampler.scheduler)


def test_seeds_have_noise_of_their_own(parts: Any) -> None:
    loaded, traced, *_ = parts
    seen: list[Tensor] = []

    def predict(arguments: tuple[Tensor, ...]) -> Tensor:
        seen.append(arguments[0])
        return arguments[0]

    for seed in (0, 1):
        sampler = Sampler(loaded, SamplerOptions(steps=1))
        Trajectories(sampler, traced, batch=3, seed=seed, predict=predict, step=lambda guided: None).run(0)
    rows = torch.cat(seen)
    assert len(torch.unique(rows, dim=0)) == 6


def test_the_denoiser_is_put_back_after_an_error(parts: Any) -> None:
    loaded, traced, *_ = parts

    def fail(arguments: tuple[Tensor, ...]) -> Tensor:
        raise KeyboardInterrupt

    sampler = Sampler(loaded, SamplerOptions(steps=2))
    with pytest.raises(KeyboardInterrupt):
        Trajectories(sampler, traced, batch=1, seed=0, predict=fail, step=lambda guided: None).run(0)
    assert "forward" not in vars(loaded.denoiser) and "step" not in vars(sampler.scheduler)


@pytest.mark.parametrize("scale", [1.5, 3.0, 7.5])
@pytest.mark.parametrize("unconditional_first", [True, False])
def test_guidance_is_found_in_either_order(scale: float, unconditional_first: bool) -> None:
    plain, conditional = noise(0, 3, 4, 8, 8), noise(1, 3, 4, 8, 8)
    rows = torch.cat([plain, conditional] if unconditional_first else [conditional, plain])
    guided = plain + scale * (conditional - plain)
    found = find_guidance(rows, guided, 3)
    assert found is not None
    torch.testing.assert_close(found(rows), guided)
    assert found.weight == pytest.approx(1 - scale if unconditional_first else scale)
    doubled = find_guidance(rows, torch.cat([guided, guided]), 3)
    assert doubled is not None and doubled.weight == pytest.approx(found.weight)


def test_what_is_no_guidance() -> None:
    rows = noise(0, 6, 4, 8, 8)
    assert find_guidance(rows, rows, 6) is None  # a row an image
    assert find_guidance(rows, noise(1, 3, 4, 8, 8), 3) is None  # something else was made of it
    assert find_guidance(torch.cat([rows[:3], rows[:3]]), rows[:3], 3) is None  # equal halves


def test_channels_that_the_scheduler_does_not_take_are_left_out() -> None:
    rows, guided = noise(0, 2, 8, 4, 4), noise(1, 2, 4, 4, 4)
    assert torch.equal(same_rows(rows, guided, None), rows[:, :4])


def test_a_timestep_that_does_not_follow_the_batch(parts: Any) -> None:
    traced = parts[1]
    inputs = tuple(replace(one, batched=one.name != traced.timestep) for one in traced.inputs)
    model = SimpleNamespace(inputs=inputs, timestep=traced.timestep, class_name="Model")
    check_timestep(model, per_timestep=False)
    with pytest.raises(CalibrationError, match="timestep of this model does not follow the batch") as error:
        check_timestep(model, per_timestep=True)
    assert "per_timestep: false" in str(error.value)
