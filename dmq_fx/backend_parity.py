"""Whether a backend gives what fake quantization gives: every site by itself, and the predictions of the whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import Opened
from dmq_fx.backend_api import BACKENDS, Progress
from dmq_fx.errors import BackendError
from dmq_fx.loading import load_opened
from dmq_fx.lowering.parity import TOLERANCE
from dmq_fx.metrics import compare
from dmq_fx.models import LoadedModel
from dmq_fx.runtime import QuantizedDenoiser
from dmq_fx.sampling import Sampler, SamplerOptions
from dmq_fx.sampling.hooks import watch_inputs

SAMPLES = 64
"""Images whose trajectories are compared."""

LIMIT = 0.03
"""By how much the error of the predictions may differ from fake quantization's, as a share of it."""


@dataclass(frozen=True)
class BackendParity:
    """A backend beside fake quantization.

    sites: sites that were compared. worst_site, site_error: the largest error of one for the same input, relative to
    the largest value of its output. fake_mse, backend_mse: of the prediction against full precision, at the states
    that full precision goes through. difference: |backend_mse / fake_mse - 1|. fake_final_mse, backend_final_mse: of
    the final images; these differ by several percent for any two ways to round a sum, as a rounding that falls the
    other way is amplified by every step after it (docs/results.md).
    """

    backend: str
    sites: int
    worst_site: str
    site_error: float
    fake_mse: float
    backend_mse: float
    difference: float
    fake_final_mse: float
    backend_final_mse: float

    @property
    def holds(self) -> bool:
        """Sites agree to float rounding, and the images are as good."""
        return self.site_error <= TOLERANCE and self.difference <= LIMIT

    def to_json(self) -> dict[str, Any]:
        """The object that `dmq compile --json` prints."""
        return vars(self) | {"holds": self.holds}


def measure_parity(
    opened: Opened,
    loaded: LoadedModel,
    backend: str,
    options: SamplerOptions,
    *,
    samples: int = SAMPLES,
    inputs: dict[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> BackendParity:
    """Compare a backend with fake quantization on the CPU, on calls of a real sampler and on whole trajectories.

    options: of the sampler, with a seed that no calibration has seen. Raises BackendError if the backend cannot run
    here or one of its sites misses its kernel.
    """
    module = loaded.denoiser if opened.model["origin"].startswith("python:") else None
    fake = load_opened(opened, backend="fake_quant", model=module)
    errors = _site_errors(opened, loaded, backend, fake, options, inputs, module)
    lowered = load_opened(opened, backend=backend, model=module, progress=progress)
    found = [
        compare(loaded, denoiser, options, samples, progress, inputs, same_input=True)[0]
        for denoiser in (fake, lowered)
    ]
    fake_mse, backend_mse = (sum(each.prediction_mse_same_input) / options.steps for each in found)
    worst = max(errors, key=lambda name: errors[name], default="")
    return BackendParity(
        backend,
        len(errors),
        worst,
        errors.get(worst, 0.0),
        fake_mse,
        backend_mse,
        abs(backend_mse / fake_mse - 1) if fake_mse else float(backend_mse != 0),
        *(each.final_mse for each in found),
    )


def _site_errors(
    opened: Opened,
    loaded: LoadedModel,
    backend: str,
    fake: QuantizedDenoiser,
    options: SamplerOptions,
    inputs: dict[str, Any] | None,
    module: torch.nn.Module | None,
) -> dict[str, float]:
    """The largest error of every site that has a kernel, over a first, a middle and a last call of the sampler."""
    target = BACKENDS.get(backend, error=BackendError)
    calls: list[tuple[Tensor, ...]] = []
    with watch_inputs(fake, lambda args, kwargs: calls.append(tuple(x.clone() for x in fake.bind(args, kwargs)))):
        for _ in Sampler(loaded, replace(options, batch=2), inputs).run(2, fake):
            pass
    largest: dict[str, float] = {}
    for call in (calls[0], calls[len(calls) // 2], calls[-1]):
        programs = [load_program(opened, module)[0] for _ in range(2)]
        for name, error in target.site_errors(programs[0], programs[1], call).items():
            largest[name] = max(largest.get(name, 0.0), error)
    return largest
