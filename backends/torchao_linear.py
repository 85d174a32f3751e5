"""Linears on torchao's own tensors, holding the recipe's integers and scales; one artifact for the CPU and for CUDA.

| weights | activations | tensor |
| --- | --- | --- |
| symmetric, per tensor or channel | full precision | `Int8Tensor` |
| asymmetric or per group | full precision | `IntxUnpackedToInt8Tensor`, which dequantizes |
| per tensor or channel, int8 less their zero point | 8 or 7 bits, one range | `Int8Tensor` with a static scale |
| the same | 8 or 7 bits, a range per timestep | `Int8Tensor` with the scale of every row, put together in every call |

Convolutions, products of activations and linears that do not fit stay fake quantization; `kernels` says why.
Activations become the same integers as there (`dmq_fx.lowering.parity` measures it), also where channels are scaled:
torchao's expression is the same, and its `act_pre_scale` carries the channels' reciprocals.

What torchao packs four bits into on CUDA (`Int4TilePackedTo4dTensor`, `Int4Tensor`) has scales in bfloat16, and so
cannot hold a recipe's float32 scales: four bits take a byte here. Recipes have no float8 scheme, and nothing becomes
float8. In a half-precision model torchao keeps the scales of `IntxUnpackedToInt8Tensor` in that type.

The module is not compiled here, whatever `LoweringOptions.compile` says: `torch.compile` takes it as it is, without a
break. On a CPU weight-only tensors save no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dmq_fx.backend_api import BACKENDS, Kept, LoweringOptions
from dmq_fx.errors import BackendError
from dmq_fx.lowering.kernels import Kernel, require_kernels
from dmq_fx.lowering.parity import site_errors
from dmq_fx.lowering.torchao_sites import INTEGER_PRODUCTS, lower_sites, torchao_kernels
from dmq_fx.lowering.torchao_tensors import multiplies_exactly
from dmq_fx.program import Program
from dmq_fx.tracing import retarget

NAME = "torchao_linear"


class TorchaoLinear:
    """Tensors of torchao's where a linear's integers fit them, fake quantization elsewhere."""

    @staticmethod
    def kernels(program: Program) -> dict[str, Kernel]:
        return torchao_kernels(program)

    @staticmethod
    def check(dtype: torch.dtype) -> None:
        """What a machine must have depends on the kernels that sites get: `lower` says it."""

    @staticmethod
    def lower(program: Program, options: LoweringOptions) -> nn.Module:
        expected = torchao_kernels(program)
        _check(options, expected)
        reached = lower_sites(program, expected, pad_rows=options.device.type == "cuda")
        require_kernels(expected, reached)
        program.graph_module.to(options.device)
        retarget(program.graph_module, options.device)
        return program.graph_module

    @staticmethod
    def kept(options: LoweringOptions, reload: Callable[[], Program]) -> Kept | None:
        return None

    @staticmethod
    def site_errors(fake: Program, program: Program, inputs: Sequence[Tensor]) -> dict[str, float]:
        for each in (fake, program):
            retarget(each.graph_module, "cpu")
        lower_sites(program, torchao_kernels(program))
        return site_errors(fake, program, inputs)


def _check(options: LoweringOptions, kernels: dict[str, Kernel]) -> None:
    """Raise BackendError for a device or type that the kernels cannot have."""
    if options.dtype is not None:
        raise BackendError(
            f"{NAME} computes in the type that the artifact was compiled with", hint="leave the type out"
        )
    if options.device.type not in ("cpu", "cuda"):
        raise BackendError(f"{NAME} runs on the CPU or on CUDA, not on {options.device.type}", hint="--device cpu")
    if options.device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("no CUDA device is available", hint="use --device cpu")
    integer = any(kernel.name in INTEGER_PRODUCTS for kernel in kernels.values())
    if integer and options.device.type == "cpu" and not multiplies_exactly():
        raise BackendError(
            "torchao's int8 products overflow on this CPU as it is set up",
            hint="VNNI is needed for sums that do not saturate (is ONEDNN_MAX_CPU_ISA set?); "
            "--backend fake_quant computes the same in floating point",
        )


BACKENDS.register(NAME)(TorchaoLinear())
