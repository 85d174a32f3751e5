"""Building a denoiser from the name of its diffusers class and its config, without weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dmq_fx.errors import ModelError, did_you_mean
from dmq_fx.models.loaded import freeze


def denoiser_class(class_name: str, *, where: str | None = None) -> type[nn.Module]:
    """The class of that name in `diffusers`, which must be a model; raises ModelError otherwise."""
    import diffusers
    from diffusers.models.modeling_utils import ModelMixin

    found = getattr(diffusers, class_name, None) if class_name.isidentifier() else None
    if found is None:
        hint = did_you_mean(class_name, [name for name in dir(diffusers) if name.endswith(("Model", "DModel"))])
        raise ModelError(f"diffusers has no class {class_name!r}", where=where, hint=hint or _class_hint())
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise ModelError(f"diffusers.{class_name} is not a model", where=where, hint=_class_hint())
    return found


def build_denoiser(
    class_name: str,
    config: dict[str, Any],
    *,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    where: str | None = None,
) -> nn.Module:
    """A denoiser without its weights: on the meta device, or on a real one with memory that is not initialised.

    Buffers that are not part of the state dict (position tables) are computed, so they hold values on a real device.
    """
    cls = denoiser_class(class_name, where=where)
    values = {key: value for key, value in config.items() if key != "_class_name"}
    try:
        with torch.device(device), _SkipInitialisation():
            denoiser = cls.from_config(values)  # type: ignore[attr-defined]
    except Exception as error:  # diffusers raises whatever its constructors run into
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{class_name} cannot be built from this config: {message}",
            where=where,
            hint="check the config against the installed diffusers version",
        ) from error
    return freeze(_cast(denoiser, dtype))


def _cast(denoiser: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast floating-point tensors to `dtype`, but those that diffusers keeps in float32 (`_keep_in_fp32_modules`)."""
    if dtype == torch.float32:
        return denoiser
    kept = set(getattr(denoiser, "_keep_in_fp32_modules", None) or ())
    for name, tensor in [*denoiser.named_parameters(), *denoiser.named_buffers()]:
        if tensor.is_floating_point() and not kept.intersection(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return denoiser


class _SkipInitialisation(TorchFunctionMode):
    """Leaves parameters as they are allocated: their values are read from a file afterwards."""

    _RANDOM = frozenset({"normal_", "uniform_", "trunc_normal_"})

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self._RANDOM or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _class_hint() -> str:
    return "denoisers are models of diffusers, such as UNet2DModel or DiTTransformer2DModel"
