"""The published weights of FID's Inception-v3: from a local file, or from the address that pytorch-fid gives them."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dmq_fx.errors import ModelError
from dmq_fx.quality.inception import FidInception

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAME}"
_HINT = f"pass {FILE_NAME} (or its tensors as safetensors) with `--feature-extractor PATH`"
_COUNTER = "num_batches_tracked"


def load_inception(path: str | Path | None = None) -> FidInception:
    """FID's Inception-v3 in fp32 and eval mode, without gradients.

    path: the published file, or a safetensors file of its tensors; without one, the file in torch.hub's cache or,
    once, a download. Raises ModelError where there is no such file, it is no such state dict, or the network cannot
    be reached.
    """
    state = _download() if path is None else _read(Path(path))
    with torch.device("meta"):
        model = FidInception()
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_COUNTER)}
    found = {name: tensor for name, tensor in state.items() if not name.endswith(_COUNTER)}
    _check(wanted, found, where=str(path or ADDRESS))
    counters = {name: torch.zeros((), dtype=torch.int64) for name in model.state_dict() if name.endswith(_COUNTER)}
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()} | counters, assign=True)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        message = (
            "the feature extractor is a file, and this is a folder" if path.is_dir() else "the file does not exist"
        )
        raise ModelError(message, where=str(path), hint=_HINT)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, among them pickle's own for anything but tensors
        kind = "safetensors" if isinstance(error, SafetensorError) else "weights"
        message = f"not readable as {kind}: {_first_line(error)}"
        raise ModelError(message, where=str(path), hint=_HINT) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError("the file is not a state dict of tensors", where=str(path), hint=_HINT)
    return state


def _download() -> dict[str, Tensor]:
    try:
        with redirect_stdout(sys.stderr):  # it prints, and stdout is for results
            return torch.hub.load_state_dict_from_url(ADDRESS, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # connection errors of several kinds, a wrong hash, a damaged file in the cache
        message = f"Inception's weights cannot be fetched: {_first_line(error)}"
        raise ModelError(message, where=ADDRESS, hint=f"check the network, or {_HINT}") from error


def _check(wanted: dict[str, Tensor], found: dict[str, Tensor], *, where: str) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    for what, names in (("missing", missing), ("unknown", extra)):
        if names:
            message = f"not the weights of FID's Inception-v3: {len(names)} {what} ({', '.join(names[:3])})"
            raise ModelError(message, where=where, hint=_HINT)
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            message = f"{name} has shape {list(tensor.shape)}, and FID's Inception-v3 has {list(wanted[name].shape)}"
            raise ModelError(message, where=where, hint=_HINT)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
