"""Find every activation's range: one streaming pass over the calibration inputs feeds all observers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dmq_fx.calibration.store import CalibrationSet
from dmq_fx.calibration.streaming import batches
from dmq_fx.observers import ActivationObserver
from dmq_fx.program.observe import OBSERVERS
from dmq_fx.program.program import Program


def calibrate(
    program: Program, inputs: CalibrationSet, *, device: torch.device, progress: Callable[[int], None]
) -> None:
    """Run the observed graph over `inputs` and keep scale and zero point of every activation.

    Requires "observed", ensures "calibrated". Raises CalibrationError for a range that is empty or not finite.
    """
    with torch.no_grad():
        for done, arguments in batches(program.traced, inputs, device):
            program.graph_module(*arguments)
            progress(done + 1)
    for activation in program.activations:
        observer = program.graph_module.get_submodule(f"{OBSERVERS}.{activation.index}")
        assert isinstance(observer, ActivationObserver)
        program.qparams[activation.index] = observer.calculate_qparams()
    program.states.add("calibrated")
