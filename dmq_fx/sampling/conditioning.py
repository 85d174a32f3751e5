"""What a user asks of the images beside their noise: prompts and a guidance scale, of pipelines that take them."""

from __future__ import annotations

from inspect import signature

from dmq_fx.errors import DmqError
from dmq_fx.models import LoadedModel
from dmq_fx.sampling.sampler import SamplerOptions


def check_conditioning(loaded: LoadedModel, options: SamplerOptions) -> None:
    """Raise DmqError for prompts or a guidance scale that the model's pipeline does not take, and for needed ones.

    For what `dmq sample` and `dmq eval` are given: images are recorded with it, and must be of it. A recipe's
    calibration may name prompts for models that take none.
    """
    accepted = signature(loaded.pipeline.__call__).parameters if loaded.pipeline is not None else {}
    if options.prompts and "prompt" not in accepted:
        count = len(options.prompts)
        received = f"{options.prompts[0]!r}" + (f" and {count - 1} more" if count > 1 else "")
        message = f"the model {loaded.origin!r} takes no prompts, and received {received}"
        raise DmqError(message, where="--prompt", hint="leave out --prompt and --prompts-file")
    if options.guidance_scale is not None and "guidance_scale" not in accepted:
        message = f"the model {loaded.origin!r} takes no guidance scale, and received {options.guidance_scale:g}"
        raise DmqError(message, where="--guidance-scale", hint="leave it out")
    if "prompt" in accepted and not options.prompts:
        message = f"the model {loaded.origin!r} makes images of prompts, and received none"
        raise DmqError(message, where="--prompt", hint="give --prompt TEXT, or --prompts-file FILE")
