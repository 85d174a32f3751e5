"""Look inside a sampling run: what the denoiser is called with, and what the scheduler makes of its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn


@contextmanager
def watch_inputs(denoiser: nn.Module, callback: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Call `callback(args, kwargs)` before every call of `denoiser`."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        callback(args, kwargs)

    handle = denoiser.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watch_outputs(denoiser: nn.Module, callback: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `callback(prediction)` after every call of `denoiser`."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        callback(output[0])

    handle = denoiser.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watch_steps(scheduler: Any, callback: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `callback(state)` with the sampler's state after every step of `scheduler`."""

    def step(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        callback(result[0])
        return result

    with _step_replaced(scheduler, step):
        yield


@contextmanager
def watch_predictions(scheduler: Any, callback: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `callback(prediction)` with what `scheduler` is given, after any guidance, before every step."""

    def step(original: Callable[..., Any], model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        callback(model_output)
        return original(model_output, *args, **kwargs)

    with _step_replaced(scheduler, step):
        yield


@contextmanager
def _step_replaced(scheduler: Any, step: Callable[..., Any]) -> Iterator[None]:
    """`step`, which is given the original one first, in place of the scheduler's."""
    original = scheduler.step
    # callers look at its signature to see what it takes
    scheduler.step = wraps(original)(lambda *args, **kwargs: step(original, *args, **kwargs))
    try:
        yield
    finally:
        del scheduler.step


@contextmanager
def answer_calls(denoiser: nn.Module, answer: Callable[[tuple[Any, ...], dict[str, Any]], Tensor]) -> Iterator[None]:
    """`answer(args, kwargs)` gives the denoiser's predictions in place of its own forward."""

    def forward(*args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        sample = answer(args, kwargs)
        return Prediction(sample=sample) if return_dict else (sample,)

    denoiser.forward = forward  # an attribute of the module: pipelines look at its class, type and configuration
    try:
        yield
    finally:
        del denoiser.forward


@dataclass
class Prediction(BaseOutput):
    """What a denoiser gives, under the name that diffusers' denoisers give it."""

    sample: Tensor
