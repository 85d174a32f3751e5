"""The exceptions of dmq: every one says what was wrong, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DmqError(Exception):
    """Root of dmq's errors.

    `where` is a place a user can open (`recipe.yaml:12:5`, a site's name, a file), `hint` what to do next.
    The command line prints `str(error)` without a traceback and exits with `exit_code`.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class RecipeError(DmqError):
    """A recipe that cannot be read, is not valid, or does not fit the model."""


class RemoteError(DmqError):
    """A remote of recipes that cannot be used, cannot be reached, or gives something else than it should."""


class SignatureError(DmqError):
    """A recipe whose signature is missing, wrong, or not by a trusted key."""


class ModelError(DmqError):
    """A model that cannot be found, read or built."""


class TraceError(DmqError):
    """A model that cannot be traced into a graph."""


class CalibrationError(DmqError):
    """Calibration inputs that cannot be made, or ranges that are empty or not finite."""


class ArtifactError(DmqError):
    """An artifact that is missing, incomplete, damaged, or of a format this version does not know."""


class BackendError(DmqError):
    """A lowering target that is unknown, or that cannot run this artifact."""


class GateError(DmqError):
    """A quality gate (`expect:`) that the compiled model did not meet."""

    exit_code = 3


class InternalError(DmqError):
    """A fault of dmq's own: a state that no input should lead to."""

    exit_code = 1


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """A hint that names the closest candidates to `word`, or None if nothing is close."""
    close = difflib.get_close_matches(word, list(candidates), n=3, cutoff=0.6)
    if not close:
        return None
    return "did you mean " + " or ".join(repr(name) for name in close) + "?"
