"""Saying where in a model's code a trace failed, instead of where in torch."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

from dmq_fx.errors import TraceError

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent.parent)
_HINT = (
    "the model's code must not depend on the values of tensors (`if tensor > 0`, `.item()`); "
    "give other inputs= if this branch is not the one that your pipeline takes"
)


def trace_error(denoiser: nn.Module, error: BaseException) -> TraceError:
    """A TraceError for what was raised while `denoiser` was traced: module, file, line, and the first line of why."""
    names = {id(module): name or type(denoiser).__name__ for name, module in denoiser.named_modules()}
    module, place = "", ""
    for frame, line in _frames(error):
        path = frame.f_code.co_filename
        owner = names.get(id(frame.f_locals.get("self")))
        if path.startswith((_TORCH, _OURS, "<")):
            continue
        module = owner or module
        place = f"{path}:{line}"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    where = f"{module or type(denoiser).__name__} ({place})" if place else type(denoiser).__name__
    return TraceError(f"cannot be traced: {type(error).__name__}: {reason}", where=where, hint=_HINT)


def _frames(error: BaseException) -> Iterator[tuple]:
    """Frames and line numbers of the exception that started the chain, outermost first."""
    seen: set[int] = set()
    while (error.__cause__ or error.__context__) is not None and id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    traced: TracebackType | None = error.__traceback__
    yield from traceback.walk_tb(traced)
