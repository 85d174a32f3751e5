"""The operators of this project as C functions that native code calls (shims.h), without a way through Python."""

from __future__ import annotations

from typing import Any

from torch import fx

from dmq_fx.lowering.int8_attention import INT8_ATTENTION
from dmq_fx.lowering.norm_quantize import NORM_QUANTIZE

_TENSOR, _WHOLE = "AtenTensorHandle", "int64_t"


def _declaration(name: str, *types: str) -> str:
    return f"AOTITorchError aoti_torch_cpu_{name}({', '.join((*types, _TENSOR + '*'))})"


SHIMS = {
    INT8_ATTENTION: [
        _declaration("int8_attention", *[_TENSOR] * 5, "double", _WHOLE, _WHOLE, "const int32_t*"),
    ],
    NORM_QUANTIZE: [
        _declaration(
            "norm_quantize",
            *(_TENSOR, f"const {_TENSOR}*", f"const {_TENSOR}*", _WHOLE, "double", "int32_t"),
            *(_TENSOR, _TENSOR, _WHOLE, _WHOLE, f"const {_WHOLE}*", _WHOLE),
        ),
    ],
}
"""Declarations by operator, as Inductor asks for them."""


def calls_own_kernels(graph: fx.Graph) -> bool:
    """Whether a graph calls an operator whose kernel is compiled on this machine."""
    return any(node.target in SHIMS for node in graph.nodes)


OF_SHIMS: dict[str, Any] = {"aot_inductor.custom_ops_to_c_shims": SHIMS}
"""Of Inductor."""
