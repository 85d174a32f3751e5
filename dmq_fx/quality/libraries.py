"""The libraries of the extra `eval`, imported when a score is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from dmq_fx.errors import DmqError
from dmq_fx.quality.metric_names import Metric

INSTALL = "pip install 'dmq-fx[eval]'"


def library(name: str, *, needed_for: str, install: str = INSTALL) -> Any:
    """The module called `name`; raises DmqError that says how to install it where it is missing or broken."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package
        message = "is not installed" if missing else f"cannot be imported: {error}"
        raise DmqError(f"{needed_for} needs {package}, which {message}", hint=install) from error


def require_library(metric: Metric) -> None:
    """Raise DmqError if what computes a metric is not installed."""
    if metric.kind in ("precision", "recall"):
        library("prdc", needed_for=f"{metric.name!r}")
    else:
        library("torchmetrics", needed_for=f"{metric.name!r}")
    if metric.kind == "lpips":
        require_torchvision()


def require_torchvision() -> None:
    """Raise DmqError if torchvision, which has LPIPS's networks, is not installed."""
    if find_spec("torchvision") is None:
        hint = "pip install the torchvision of this torch"
        raise DmqError("LPIPS needs torchvision, which is not installed", hint=hint)
