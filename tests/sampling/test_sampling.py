"""The sampler: the same image whatever the batch, the model's own scheduler, hooks that leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from dmq_fx.calibration.capture import calibration_set
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.errors import CalibrationError, DmqError
from dmq_fx.metrics import compare
from dmq_fx.models import LoadedModel, fingerprint, load_model
from dmq_fx.recipe.language import Calibration
from dmq_fx.sampling import Sampler, SamplerOptions, watch_inputs, watch_steps
from dmq_fx.sampling.schedulers import make_scheduler
from dmq_fx.tracing import trace


@pytest.fixture(scope="module")
def loaded(pipeline_folder: Path) -> LoadedModel:
    return load_model(str(pipeline_folder))


def images(loaded: LoadedModel, batch: int, seed: int = 0) -> Tensor:
    options = SamplerOptions(steps=3, batch=batch, seed=seed)
    return torch.cat(list(Sampler(loaded, options).run(5)))


def test_image_does_not_depend_on_the_batch(loaded: LoadedModel) -> None:
    one, many = images(loaded, 1), images(loaded, 5)
    assert one.shape == (5, 3, 16, 16)
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)


def test_image_k_has_seed_plus_k(loaded: LoadedModel) -> None:
    torch.testing.assert_close(images(loaded, 2, seed=0)[2:], images(loaded, 3, seed=2)[:3], atol=1e-5, rtol=0)


def test_pipeline_is_put_back(loaded: LoadedModel) -> None:
    pipeline = loaded.pipeline
    assert pipeline is not None
    scheduler = pipeline.scheduler
    stranger = torch.nn.Module()
    with pytest.raises(Exception):  # noqa: B017  (whatever the pipeline says of a module without a config)
        list(Sampler(loaded, SamplerOptions(steps=2, scheduler="euler")).run(1, stranger))
    assert pipeline.unet is loaded.denoiser and pipeline.scheduler is scheduler


def test_scheduler_by_name_keeps_the_noise_schedule(loaded: LoadedModel) -> None:
    assert loaded.pipeline is not None
    current = loaded.pipeline.scheduler
    found = make_scheduler("dpmsolver++", current)
    assert type(found).__name__ == "DPMSolverMultistepScheduler"
    assert found.config.num_train_timesteps == current.config.num_train_timesteps
    assert make_scheduler("pipeline", current) is current


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmsolver++", "euler", "unipc"])
def test_every_scheduler_drives_a_pixel_pipeline(loaded: LoadedModel, name: str) -> None:
    options = SamplerOptions(steps=3, batch=2, scheduler=name)
    found = torch.cat(list(Sampler(loaded, options).run(2)))
    assert found.shape == (2, 3, 16, 16) and 0 <= float(found.min()) <= float(found.max()) <= 1
    assert float(found.std()) > 0.05


def test_named_ddim_is_the_pipelines_own(loaded: LoadedModel) -> None:
    options = SamplerOptions(steps=3, batch=5, scheduler="ddim")
    torch.testing.assert_close(torch.cat(list(Sampler(loaded, options).run(5))), images(loaded, 5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pipeline", "ddpm", "euler"])
def test_model_compared_with_itself_is_equal(loaded: LoadedModel, name: str) -> None:
    """The same noise for both, also where the sampler itself draws noise."""
    found, exact, again = compare(loaded, loaded.denoiser, SamplerOptions(steps=3, batch=2, scheduler=name), 3)
    assert torch.equal(exact, again)
    assert found.final_mse == 0 and found.final_psnr is None and found.trajectory_mse == [0, 0, 0]


def test_samples_that_are_not_finite_are_an_error(loaded: LoadedModel) -> None:
    class Broken(torch.nn.Module):
        config, dtype, device = loaded.denoiser.config, torch.float32, torch.device("cpu")

        def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
            return UNet2DOutput(sample=sample * torch.nan)

    with pytest.raises(DmqError, match="the quantized model's samples are not finite"):
        compare(loaded, Broken(), SamplerOptions(steps=2, batch=2), 2)


def test_scheduler_that_does_not_fit() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    with pytest.raises(CalibrationError, match="does not fit the pipeline's FlowMatchEulerDiscreteScheduler"):
        make_scheduler("ddim", FlowMatchEulerDiscreteScheduler())


def test_hooks_see_inputs_and_steps_and_go(loaded: LoadedModel) -> None:
    sampler = Sampler(loaded, SamplerOptions(steps=3, batch=2))
    calls: list[tuple] = []
    states: list[Tensor] = []
    with (
        watch_inputs(loaded.denoiser, lambda args, kwargs: calls.append(args)),
        watch_steps(sampler.scheduler, states.append),
    ):
        list(sampler.run(2))
    list(sampler.run(2))
    assert len(calls) == len(states) == 3
    assert torch.equal(calls[1][0], states[0])  # what a step makes is what the next call sees


def test_calibration_is_what_the_denoiser_sees(loaded: LoadedModel, tmp_path: Path) -> None:
    traced = trace(loaded.denoiser)
    cache = CalibrationCache(tmp_path / "cache")
    options = Calibration(steps=3, samples=3, batch=2, seed=7)
    seen: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        seen.append(f"{what} {done}/{total}")

    arguments = {"identity": fingerprint(loaded.denoiser), "cache": cache, "progress": progress}
    found = calibration_set(loaded, traced, options, **arguments)
    assert seen == ["sampling 1/2", "sampling 2/2"]
    calls: list[tuple] = []
    with watch_inputs(loaded.denoiser, lambda args, kwargs: calls.append(args)):
        list(Sampler(loaded, SamplerOptions.of(options)).run(3))
    stored = list(found)
    assert [(batch, step) for batch, step, _ in stored] == [(b, s) for b in range(2) for s in range(3)]
    for (_, step, tensors), call in zip(stored, calls, strict=True):
        assert torch.equal(tensors["sample"], call[0])
        assert set(tensors["timestep"].tolist()) == {found.timesteps[step]} == {float(call[1])}
    again = calibration_set(loaded, traced, options, **arguments)
    assert len(seen) == 2 and again.timesteps == found.timesteps  # from the cache


@pytest.mark.parametrize("change", [{"seed": 8}, {"steps": 2}, {"sampler": "ddpm"}, {"samples": 2}])
def test_calibration_key_covers_what_decides_it(loaded: LoadedModel, tmp_path: Path, change: dict[str, object]) -> None:
    traced = trace(loaded.denoiser)
    cache = CalibrationCache(tmp_path / "cache")
    base: dict[str, object] = {"steps": 3, "samples": 3, "batch": 2, "seed": 7}
    sampled: list[str] = []
    for options in (base, base | change):
        calibration_set(
            loaded,
            traced,
            Calibration(**options),  # type: ignore[arg-type]
            identity="f",
            cache=cache,
            progress=lambda what, done, total: sampled.append(what),
        )
    assert len(list(cache.root.iterdir())) == 2


def test_bare_denoiser_of_another_kind(architectures: ModuleType) -> None:
    loaded = load_model(architectures.tiny_model("dit"))
    sampler = Sampler(loaded, SamplerOptions(steps=2, batch=2), architectures.tiny_inputs("dit"))
    latents = torch.cat(list(sampler.run(3)))
    assert latents.shape[0] == 3 and bool(torch.isfinite(latents).all())
