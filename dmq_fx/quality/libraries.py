"""The libraries of the extra `eval`, imported when a score is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dmq_fx.errors import DmqError

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
