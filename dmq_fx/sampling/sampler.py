"""Run a model's own sampler, batch by batch, the k-th image the same whatever the batch size."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.errors import CalibrationError
from dmq_fx.models import LoadedModel
from dmq_fx.models.pixels import PixelPipeline
from dmq_fx.recipe.language import Calibration
from dmq_fx.sampling.loop import DenoiserLoop
from dmq_fx.sampling.schedulers import make_scheduler


@dataclass(frozen=True)
class SamplerOptions:
    """How images are sampled. Image k starts from noise of seed `seed + k`."""

    steps: int = 20
    batch: int = 16
    seed: int = 0
    scheduler: str = "pipeline"
    prompts: tuple[str, ...] = ()
    guidance_scale: float | None = None

    @staticmethod
    def of(calibration: Calibration) -> SamplerOptions:
        """The options that a recipe's calibration block asks for."""
        return SamplerOptions(
            steps=calibration.steps,
            batch=calibration.batch,
            seed=calibration.seed,
            scheduler=calibration.sampler,
            prompts=calibration.prompts,
            guidance_scale=calibration.guidance_scale,
        )


def require_prompts(pipeline: Any, prompts: Sequence[str]) -> None:
    """Raise CalibrationError if a pipeline makes images of prompts and a recipe has none."""
    if pipeline is not None and not prompts and "prompt" in inspect.signature(pipeline.__call__).parameters:
        raise CalibrationError(
            f"{type(pipeline).__name__} makes images of prompts, and the recipe has none to calibrate on",
            where="calibration.prompts",
            hint="--set 'calibration.prompts=[a cat, a red house]', or the same in the recipe",
        )


class Sampler:
    """A pipeline (or a bare denoiser's loop) with a denoiser that can be swapped.

    The loaded model's pipeline is used as it is: its scheduler and denoiser are put back after every run.
    inputs: what a bare denoiser is called with; not used with a pipeline.
    """

    def __init__(self, loaded: LoadedModel, options: SamplerOptions, inputs: Mapping[str, Any] | None = None) -> None:
        self.loaded = loaded
        self.options = options
        self.inputs = inputs
        self.pipeline: Any = loaded.pipeline or DenoiserLoop(loaded.denoiser, loaded.class_name, inputs)
        self.component = loaded.component if loaded.pipeline is not None else "denoiser"
        self.scheduler = make_scheduler(options.scheduler, self.pipeline.scheduler)
        first = next(loaded.denoiser.parameters(), torch.zeros(()))
        # Such a pipeline passes arguments that only its own scheduler takes, and cannot give bfloat16 images.
        self.pixels = _is_plain(self.pipeline) and (options.scheduler != "pipeline" or first.dtype == torch.bfloat16)
        if self.pixels:
            if isinstance(self.pipeline, PixelPipeline):
                raise CalibrationError(
                    f"the sampler {options.scheduler!r} needs the denoiser, and the model was loaded without it",
                    where=loaded.origin,
                    hint="load the model with its weights",
                )
            self.pipeline = DenoiserLoop(loaded.denoiser, loaded.class_name, inputs, self.scheduler)
            self.component = "denoiser"
        if hasattr(self.pipeline, "set_progress_bar_config"):
            self.pipeline.set_progress_bar_config(disable=True)

    def with_options(self, **changes: Any) -> Sampler:
        """The same model with other options."""
        return Sampler(self.loaded, replace(self.options, **changes), self.inputs)

    def run(self, samples: int, denoiser: nn.Module | None = None, *, first: int = 0) -> Iterator[Tensor]:
        """Yield batches of images ([batch, channels, height, width] in 0..1) or, without a decoder, of latents.

        first: number of the first image; those before it are left out.
        """
        original, kept = getattr(self.pipeline, self.component), self.pipeline.scheduler
        for start in range(first, samples, self.options.batch):
            count = min(self.options.batch, samples - start)
            try:
                setattr(self.pipeline, self.component, denoiser if denoiser is not None else original)
                self.pipeline.scheduler = self.scheduler
                with torch.no_grad():
                    batch = self._call(start, count)
            finally:
                setattr(self.pipeline, self.component, original)
                self.pipeline.scheduler = kept
            yield batch

    def _call(self, first: int, count: int) -> Tensor:
        seeds = range(self.options.seed + first, self.options.seed + first + count)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if isinstance(self.pipeline, DenoiserLoop):
            latents = self.pipeline(count, self.options.steps, generators)
            return (latents.float() / 2 + 0.5).clamp(0, 1) if self.pixels else latents
        output = self._call_pipeline(self._arguments(first, count, generators))
        images = torch.as_tensor(output[0])
        return images.permute(0, 3, 1, 2) if images.dim() == 4 else images

    def _call_pipeline(self, arguments: dict[str, Any]) -> Any:
        try:
            return self.pipeline(**arguments)
        except TypeError as error:
            if self.options.scheduler == "pipeline":
                raise
            raise CalibrationError(
                f"{type(self.pipeline).__name__} cannot use the sampler {self.options.scheduler!r}: {error}",
                where="calibration.sampler",
                hint="use `sampler: pipeline`",
            ) from error

    def _arguments(self, first: int, count: int, generators: Sequence[torch.Generator]) -> dict[str, Any]:
        accepted = inspect.signature(self.pipeline.__call__).parameters
        arguments: dict[str, Any] = {
            "num_inference_steps": self.options.steps,
            "generator": list(generators),
            "output_type": "np",
            "return_dict": False,
        }
        if "prompt" in accepted:
            require_prompts(self.pipeline, self.options.prompts)
            prompts = self.options.prompts
            arguments["prompt"] = [prompts[k % len(prompts)] for k in range(first, first + count)]
        elif "class_labels" in accepted:
            classes = int(self.loaded.config.get("num_embeds_ada_norm") or 1)
            arguments["class_labels"] = [k % classes for k in range(first, first + count)]
        elif "batch_size" in accepted:
            arguments["batch_size"] = count
        else:
            raise CalibrationError(f"do not know how to call {type(self.pipeline).__name__}")
        if self.options.guidance_scale is not None:
            arguments["guidance_scale"] = self.options.guidance_scale
        return {key: value for key, value in arguments.items() if key in accepted}


def _is_plain(pipeline: Any) -> bool:
    """A pipeline of nothing but a denoiser of pixels and a scheduler (DDPM, DDIM, PNDM)."""
    return set(getattr(pipeline, "components", {})) == {"unet", "scheduler"}
