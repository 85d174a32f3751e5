"""Libraries of the extra `viz`, imported when something is to be drawn."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from dmq_fx.errors import DmqError

PACKAGES = {"model_explorer": "ai-edge-model-explorer"}
"""Packages that are not called like their module."""


def need(module: str) -> ModuleType:
    """The module called `module`; raises DmqError that names the extra where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = PACKAGES.get(top, top)
        raise DmqError(f"this needs {package}: {error}", hint="pip install 'dmq-fx[viz]'") from error
