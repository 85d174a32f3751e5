"""Reading a denoiser's weights from its folder: safetensors; pickles only on request, and never as code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dmq_fx.errors import ModelError
from dmq_fx.models.config import read_json

_STEM = "diffusion_pytorch_model"
_REPAIR = "download or copy the file again"


def load_weights(denoiser: nn.Module, folder: Path, *, variant: str | None = None, allow_pickle: bool = False) -> None:
    """Fill `denoiser` with the tensors in `folder`, cast to the dtype it was built with.

    Raises ModelError where a file is missing or damaged, and where names or shapes do not fit the config.
    """
    wanted = dict(denoiser.state_dict())
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder, variant=variant, allow_pickle=allow_pickle):
        tensors.update(_read(path))
    _check(wanted, tensors, folder)
    cast = {name: tensor.to(dtype=wanted[name].dtype, device=wanted[name].device) for name, tensor in tensors.items()}
    denoiser.load_state_dict(cast, strict=True, assign=True)
    denoiser.requires_grad_(False)


def weight_files(folder: Path, *, variant: str | None = None, allow_pickle: bool = False) -> list[Path]:
    """The weight files of a denoiser folder: one file, or the shards its index names."""
    middle = f".{variant}" if variant else ""
    suffixes = ["safetensors", *(["bin"] if allow_pickle else [])]
    for suffix in suffixes:
        whole = folder / f"{_STEM}{middle}.{suffix}"
        if whole.is_file():
            return [whole]
        index = folder / f"{_STEM}.{suffix}.index{middle}.json"
        if index.is_file():
            return _shards(index)
    checkpoints = sorted(folder.glob("*.ckpt")) if allow_pickle else []
    if len(checkpoints) == 1:
        return checkpoints
    raise _no_weights(folder, f"{_STEM}{middle}.safetensors")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError("the index has no 'weight_map'", where=str(index), hint=_REPAIR)
    files = sorted(set(map(str, names.values())))
    for name in files:
        if Path(name).name != name:
            raise ModelError(f"the index names a file outside of its folder: {name!r}", where=str(index))
        if not (index.parent / name).is_file():
            raise ModelError("the file is in the index, but does not exist", where=str(index.parent / name))
    return [index.parent / name for name in files]


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, ValueError, EOFError, RuntimeError) as error:
        raise ModelError(f"the weights cannot be read: {_first_line(error)}", where=str(path), hint=_REPAIR) from error
    except Exception as error:  # torch raises pickle's own errors for anything but tensors
        hint = "the file holds more than tensors; convert it to safetensors where you trust it"
        raise ModelError(f"the weights cannot be read: {_first_line(error)}", where=str(path), hint=hint) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ModelError("the file is not a state dict of tensors", where=str(path))
    return state


def _check(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor], folder: Path) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        parts = [f"{len(names)} {what} ({_some(names)})" for what, names in (("missing", missing), ("unknown", extra))]
        message = " and ".join(part for part in parts if not part.startswith("0 "))
        hint = "config.json and the weights belong to different models"
        raise ModelError(f"the weights do not fit the config: {message}", where=str(folder), hint=hint)
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            message = f"has shape {tuple(tensor.shape)}, and the config asks for {tuple(wanted[name].shape)}"
            raise ModelError(f"{name} {message}", where=str(folder))


def _no_weights(folder: Path, name: str) -> ModelError:
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".ckpt"))
    if not others:
        return ModelError("there are no weights in this folder", where=str(folder), hint=f"expected {name}")
    hint = f"it holds {', '.join(others[:5])}"
    if any(not other.endswith(".safetensors") for other in others):
        hint += "; pickled weights are read only with allow_pickle=True"
    else:
        hint += "; a file such as NAME.fp16.safetensors is read with variant='fp16'"
    return ModelError(f"there is no {name} in this folder", where=str(folder), hint=hint)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
