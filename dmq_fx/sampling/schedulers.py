"""Schedulers by the names that recipes use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmq_fx.errors import CalibrationError, DmqError, did_you_mean

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

PIPELINE = "pipeline"
"""The name of the pipeline's own."""

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}

FLOW_MATCHING = (
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "SanaTransformer2DModel",
    "WanTransformer3DModel",
)
"""Denoisers that predict a velocity along a straight path: their noise schedule is a flow's."""


def check_scheduler(name: str) -> None:
    """Raise DmqError for a name that is no scheduler's, with the closest and all known names."""
    known = (PIPELINE, *CLASSES)
    if name not in known:
        listed = f"known: {', '.join(known)}"
        close = did_you_mean(str(name), known)
        raise DmqError(f"unknown scheduler {name!r}", where="scheduler", hint=f"{close} {listed}" if close else listed)


def make_scheduler(name: str, current: Any) -> Any:
    """The scheduler called `name` with the noise schedule of `current`; `pipeline` is `current` itself.

    Raises DmqError for an unknown name, and CalibrationError for a scheduler that does not fit the pipeline's.
    """
    check_scheduler(name)
    if name == PIPELINE:
        return current
    import diffusers

    cls = getattr(diffusers, CLASSES[name])
    compatible = [c.__name__ for c in getattr(current, "compatibles", [])]
    if compatible and cls.__name__ not in compatible and type(current) is not cls:
        raise CalibrationError(
            f"sampler {name!r} ({cls.__name__}) does not fit the pipeline's {type(current).__name__}",
            where="calibration.sampler",
            hint="use `sampler: pipeline`",
        )
    return cls.from_config(current.config)


def default_scheduler(class_name: str) -> SchedulerMixin:
    """A scheduler for a denoiser that comes without a pipeline."""
    if class_name in FLOW_MATCHING:
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler()
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(clip_sample=False)
