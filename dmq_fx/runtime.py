"""A quantized denoiser that stands where the original stood: `pipe.unet = dmq.load("out")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from dmq_fx.errors import BackendError
from dmq_fx.tracing import TracedModel, bind_inputs, retarget

CHANGES = ("save_", "push_", "load_", "set_", "add_", "delete_", "fuse_", "unfuse_", "enable_", "disable_", "from_")
"""What methods that write or change a diffusers model begin with."""


def _reload(arguments: dict[str, Any], digest: str) -> QuantizedDenoiser:
    from dmq_fx.loading import load

    found = load(**arguments)
    if found.info["digest"] != digest:
        raise BackendError(
            "the artifact is not the one that was pickled",
            where=str(arguments["path"]),
            hint="it was compiled again since; load it anew",
        )
    return found


@dataclass
class DenoiserOutput(BaseOutput):
    """What the denoiser predicts. sample: of the shape of the noisy input (or with twice its channels)."""

    sample: Tensor


class Original:
    """The denoiser that a quantized one was made of, without weights: built when more is asked than its configuration.

    The import of its class alone takes longer than that of everything that runs the graph. build: gives the empty copy.
    config: its configuration; None where only the copy knows.
    """

    def __init__(self, build: Callable[[], nn.Module], config: Mapping[str, Any] | None = None) -> None:
        self._build = build
        self._config = config

    @cached_property
    def module(self) -> nn.Module:
        """The empty copy; raises what `build` raises."""
        return self._build()

    @cached_property
    def config(self) -> Any:
        """As the denoiser's own attribute; empty for a class without one."""
        return FrozenDict(self._config) if self._config is not None else getattr(self.module, "config", FrozenDict())


class QuantizedDenoiser(nn.Module):
    """A lowered graph behind the signature, configuration and attributes of the denoiser it was made of.

    Attributes that pipelines read from a denoiser (`config`, `dtype`, `add_embedding`, ...) are answered by `Original`.
    The module moves between devices; it does not change its type.
    """

    def __init__(self, lowered: nn.Module, traced: TracedModel, original: Original, info: dict[str, Any]) -> None:
        super().__init__()
        self.lowered = lowered
        self.info = info
        self.register_buffer("_probe", torch.zeros(()), persistent=False)
        self._signature = (traced,)  # in a tuple, so that its graph does not become a submodule
        self._original = original

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> DenoiserOutput | tuple[Tensor, ...]:
        """Called like the original denoiser; raises TraceError for an input that was not traced."""
        output = self.lowered(*self.bind(args, kwargs))
        sample = output[0] if isinstance(output, (tuple, list)) else output
        return DenoiserOutput(sample=sample) if return_dict else (sample,)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The graph's inputs for a call."""
        return bind_inputs(self._signature[0], args, kwargs)

    @property
    def config(self) -> Any:
        """Configuration of the original denoiser."""
        return self._original.config

    @property
    def device(self) -> torch.device:
        return self._probe.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the inputs and outputs."""
        return self.info["compute_dtype"]

    def behind_same_signature(self, lowered: nn.Module) -> QuantizedDenoiser:
        """Another module that takes the graph's inputs, called as this one is."""
        return QuantizedDenoiser(lowered, self._signature[0], self._original, self.info)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, and copied, as the artifact that it came from: loading checks that it is still the same one."""
        if self.info["reload"] is None:
            raise BackendError(
                "a quantized model of a class of your own cannot be pickled",
                where=str(self.info["path"]),
                hint="load the artifact again, with model=, where it is needed",
            )
        return _reload, (self.info["reload"], self.info["digest"])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            value = getattr(self._original.module, name)
            if name.startswith(CHANGES) and callable(value):
                raise BackendError(
                    f"a quantized model cannot do {name}()",
                    where=str(self.info.get("path", "")),
                    hint="do it to the full-precision model, and compile that; an artifact is copied as a folder",
                ) from None
            return value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedDenoiser:
        if fn(self._probe).dtype != self._probe.dtype:
            raise BackendError(
                "a quantized model keeps the type that it was compiled with",
                where=str(self.info.get("path", "")),
                hint=f"it computes in {self.dtype}; compile again with another --dtype",
            )
        super()._apply(fn, recurse)
        for module in self.modules():
            if isinstance(module, torch.fx.GraphModule):
                retarget(module, self.device)
        return self
