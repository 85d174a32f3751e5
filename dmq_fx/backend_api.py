"""What a backend is: a lowering target for a quantized graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from dmq_fx.registry import Registry

if TYPE_CHECKING:
    from dmq_fx.lowering.kernels import Kernel
    from dmq_fx.program.program import Program

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LoweringOptions:
    """How an artifact is lowered.

    device: where it runs. digest: the artifact's, under which compiled code is kept; empty for a program that is no
    artifact. compile: make native code, where a backend does. dtype: what the backend computes in between integer
    kernels; its own choice if None.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    digest: str = ""
    compile: bool = True
    dtype: torch.dtype | None = None
    progress: Progress = lambda what, done, total: None

    @property
    def reload(self) -> dict[str, Any]:
        """Arguments of `dmq_fx.load` that lower the same way again."""
        return {"device": str(self.device), "compile": self.compile, "dtype": self.dtype}


@dataclass(frozen=True)
class Kept:
    """What an earlier lowering of the same artifact left on this machine.

    lowered: the module, ready. call: how calls map to its inputs (`tracing.call.describe_call`).
    """

    lowered: nn.Module
    call: dict[str, Any]


class Backend(Protocol):
    """Turns a quantized program into a module that runs on a device."""

    def kernels(self, program: Program) -> dict[str, Kernel]:
        """The kernel that every site will get, or why none; needs a program whose activations are grouped.

        Called for a plan, before there are weights, and for the quantized program.
        """
        ...

    def check(self, dtype: torch.dtype) -> None:
        """Raise BackendError where this machine cannot run the backend, or not for a model of this type.

        Asked before a compile whose artifact the backend is to run.
        """
        ...

    def lower(self, program: Program, options: LoweringOptions) -> nn.Module:
        """A module that takes the graph's flat inputs and returns its outputs; raises BackendError if it cannot.

        The program may be used up: weights that a kernel lays out in its own way are not held twice.
        """
        ...

    def kept(self, options: LoweringOptions, reload: Callable[[], Program]) -> Kept | None:
        """What is ready to run without reading the artifact's graph; None if nothing is.

        reload: reads the artifact, for what turns out to be missing later.
        """
        ...

    def site_errors(self, fake: Program, program: Program, inputs: Sequence[Tensor]) -> dict[str, float]:
        """The error of every site that has a kernel, for the input that it has in fake quantization.

        Relative to the largest value of the site's output. Both programs are those of one artifact, and are used up;
        inputs: flat, of one call whose samples share a timestep.
        """
        ...


BACKENDS: Registry[Backend] = Registry("backend", entry_point_group="dmq_fx.backends")
"""Backends by the name that recipes use."""
