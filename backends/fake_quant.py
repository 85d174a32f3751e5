"""Fake quantization: run the graph's quantize and dequantize nodes as they stand, on any device.

This is the reference of the integers; every other backend must agree with it to float rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dmq_fx.backend_api import BACKENDS, Kept, LoweringOptions
from dmq_fx.errors import BackendError
from dmq_fx.lowering.kernels import Kernel
from dmq_fx.program import Program
from dmq_fx.tracing import retarget


class FakeQuant:
    """Moves the graph to the device; nothing is rewritten."""

    @staticmethod
    def kernels(program: Program) -> dict[str, Kernel]:
        floating = {True: Kernel(None, "fake quantization"), False: Kernel(None, "full precision")}
        return {planned.name: floating[planned.quantized] for planned in program.plan.sites}

    @staticmethod
    def check(dtype: torch.dtype) -> None:
        """It runs everywhere."""

    @staticmethod
    def lower(program: Program, options: LoweringOptions) -> nn.Module:
        if options.device.type == "cuda" and not torch.cuda.is_available():
            raise BackendError("no CUDA device is available", hint="use --device cpu")
        if options.dtype is not None:
            raise BackendError(
                "fake_quant computes in the type that the artifact was compiled with", hint="leave the type out"
            )
        program.graph_module.to(options.device)
        retarget(program.graph_module, options.device)
        return program.graph_module

    @staticmethod
    def kept(options: LoweringOptions, reload: Callable[[], Program]) -> Kept | None:
        return None

    @staticmethod
    def site_errors(fake: Program, program: Program, inputs: Sequence[Tensor]) -> dict[str, float]:
        """No site has a kernel of its own."""
        return {}


BACKENDS.register("fake_quant")(FakeQuant())
