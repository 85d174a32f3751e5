"""dmq: a declarative quantization recipe compiler for diffusion models.

import dmq_fx as dmq

result = dmq.compile("ptq/w8a8", model="builtin:ddpm-mnist", output="out")
pipe.unet = dmq.load("out")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmq_fx.compiler import CompileResult, compile, plan
    from dmq_fx.errors import DmqError
    from dmq_fx.evaluation import evaluate
    from dmq_fx.loading import load
    from dmq_fx.metrics import Evaluation
    from dmq_fx.planning import Plan
    from dmq_fx.runtime import QuantizedDenoiser

_HOMES = {
    "CompileResult": "dmq_fx.compiler",
    "compile": "dmq_fx.compiler",
    "plan": "dmq_fx.compiler",
    "DmqError": "dmq_fx.errors",
    "evaluate": "dmq_fx.evaluation",
    "load": "dmq_fx.loading",
    "Evaluation": "dmq_fx.metrics",
    "Plan": "dmq_fx.planning",
    "QuantizedDenoiser": "dmq_fx.runtime",
}
__all__ = [
    "CompileResult",
    "DmqError",
    "Evaluation",
    "Plan",
    "QuantizedDenoiser",
    "compile",
    "evaluate",
    "load",
    "plan",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import dmq_fx` alone must not wait for torch and diffusers."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
