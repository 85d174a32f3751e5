"""How fast an artifact runs: one forward by every backend and by the full-precision model, side by side."""

from __future__ import annotations

import copy
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

from dmq_fx.artifact.opened import Opened, open_artifact
from dmq_fx.backend_api import BACKENDS, Progress
from dmq_fx.errors import BackendError, DmqError
from dmq_fx.loading import load_opened
from dmq_fx.lowering.native import quiet_compiler
from dmq_fx.models import LoadedModel
from dmq_fx.options import parse_device
from dmq_fx.tracing import rebuild_inputs, repeat_inputs

REFERENCES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The full-precision model through torch.compile, in these types."""


@dataclass(frozen=True)
class Timing:
    """One variant at one batch size. milliseconds: median of a forward; fastest: the least of all rounds.

    ratio: how many times as fast as the first variant at this batch.
    """

    variant: str
    batch: int
    milliseconds: float
    fastest: float
    ratio: float


@dataclass(frozen=True)
class Benchmark:
    """Timings with what they depend on. peak_megabytes: largest resident size of the process, all variants in it."""

    threads: int
    rounds: int
    timings: tuple[Timing, ...]
    peak_megabytes: float

    def to_json(self) -> dict[str, Any]:
        """The object that `dmq bench --json` prints."""
        return asdict(self)


def bench(
    path: Any,
    loaded: LoadedModel | None,
    *,
    variants: Sequence[str],
    batches: Sequence[int] = (1, 4),
    rounds: int = 10,
    compile: bool = True,
    device: str = "cpu",
    progress: Progress = lambda what, done, total: None,
) -> Benchmark:
    """Time one forward of each variant, in turn, `rounds` times.

    variants: backends, and `fp32` or `bf16` for the full-precision model (`loaded`) through torch.compile; the first is
    what the others are compared with. All weights and inputs are in memory; noise and timestep are fixed.
    Raises DmqError for an unknown variant, BackendError for a backend that cannot run here.
    """
    opened = open_artifact(path)
    if not variants:
        raise DmqError("nothing to time", where="--backends", hint=f"known: {_known()}")
    unknown = [name for name in variants if name not in REFERENCES and name not in BACKENDS.names()]
    if unknown:
        raise DmqError(f"nothing called {unknown[0]!r} can be timed", where="--backends", hint=f"known: {_known()}")
    place = parse_device(device)
    timings: list[Timing] = []
    models: dict[str, Callable[..., Any]] = {}
    for name in variants:
        progress(f"preparing {name}", 0, 0)
        models[name] = _prepare(name, opened, loaded, compile=compile, device=place, progress=progress)
    for batch in batches:
        calls = {name: _call(model, opened, batch, place) for name, model in models.items()}
        timings += _time(calls, batch, rounds, progress)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return Benchmark(torch.get_num_threads(), rounds, tuple(timings), peak)


def _known() -> str:
    return ", ".join((*BACKENDS.names(), *REFERENCES))


def _prepare(
    name: str,
    opened: Opened,
    loaded: LoadedModel | None,
    *,
    compile: bool,
    device: torch.device,
    progress: Progress,
) -> Callable[..., Any]:
    if name not in REFERENCES:
        module = loaded.denoiser if loaded and opened.model["origin"].startswith("python:") else None
        return load_opened(opened, backend=name, device=device, model=module, compile=compile, progress=progress)
    if loaded is None:
        raise BackendError("the full-precision model is not there", where=name, hint="name it with --model")
    return _Reference(loaded.denoiser, REFERENCES[name], device, compile=compile)


class _Reference:
    """The original denoiser in one type, with inputs of that type."""

    def __init__(self, denoiser: nn.Module, dtype: torch.dtype, device: torch.device, *, compile: bool) -> None:
        module = copy.deepcopy(denoiser).to(device, dtype)
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._run: Callable[..., Any] = torch.compile(module, dynamic=False) if compile else module
        self._dtype = dtype

    def __call__(self, **inputs: Any) -> Any:
        return self._run(**_cast(inputs, self._dtype))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and value.dim() > 1 else value
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, dtype) for item in value)
    return {key: _cast(item, dtype) for key, item in value.items()} if isinstance(value, dict) else value


def _call(model: Any, opened: Opened, batch: int, device: torch.device) -> Callable[[], Any]:
    """One forward on noise of the traced shape, at a calibrated timestep, after two that nobody times."""
    inputs = noise_inputs(opened, batch, device)

    def run() -> Any:
        with torch.no_grad(), torch._inductor.config.patch(freezing=True):
            result = model(**inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return result

    with quiet_compiler():
        for _ in range(2):
            run()
    return run


def noise_inputs(opened: Opened, batch: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Keyword arguments of a call: noise of the shapes that the artifact was traced with, a calibrated timestep.

    The same noise on every device.
    """
    described = repeat_inputs(rebuild_inputs(opened.manifest.content["inputs"], "cpu"), batch)
    calibrated = opened.report["timesteps"]
    step = calibrated[len(calibrated) // 2] if calibrated else 500
    generator = torch.Generator().manual_seed(0)

    def filled(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(name, item) for name, item in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(filled("", item) for item in value)
        if not isinstance(value, Tensor):
            return value
        if key in ("timestep", "timesteps", "t"):
            return torch.full_like(value, step).to(device)
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(device, value.dtype)
        return torch.zeros_like(value).to(device)

    return {key: filled(key, value) for key, value in described.items()}


def _time(calls: dict[str, Callable[[], Any]], batch: int, rounds: int, progress: Progress) -> list[Timing]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
        progress(f"timing batch {batch}", number + 1, rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    return [
        Timing(name, batch, 1e3 * medians[name], 1e3 * min(values), first / medians[name])
        for name, values in seconds.items()
    ]
