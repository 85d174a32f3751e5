"""Tensors on disk: lossless narrowing, and safetensors files that are the same bytes for the same tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dmq_fx.artifact.container import sync_file
from dmq_fx.artifact.manifest import canonical_json
from dmq_fx.errors import ArtifactError, InternalError

METADATA_KEY = "dmq"
"""The one metadata key that is written: safetensors keeps several in the random order of a hash map."""

CHUNK_ELEMENTS = 2**20

_NARROWER: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float64: (torch.float16, torch.bfloat16, torch.float32),
    torch.float32: (torch.float16, torch.bfloat16),
    torch.int64: (torch.int8, torch.uint8, torch.int16, torch.int32),
    torch.int32: (torch.int8, torch.uint8, torch.int16),
    torch.int16: (torch.int8, torch.uint8),
}
"""Dtypes that values of a wider one may be stored in, in the order in which they are tried."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def narrow(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in the first narrower dtype that holds every value exactly, or as it is if none does.

    float32 goes to float16, else to bfloat16; float64 also to float32; integers to the smallest integer dtype.
    Exact means bit for bit after the way back: -0.0, infinities and subnormals are kept. A tensor with a NaN stays as
    it is, because which NaN comes back depends on the processor.
    """
    for dtype in _NARROWER.get(tensor.dtype, ()):
        if _holds_exactly(tensor, dtype):
            return tensor.to(dtype)
    return tensor


def restore(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Undo `narrow`: `tensor` as `dtype`. ArtifactError if `narrow` of a `dtype` never gives what is stored."""
    if tensor.dtype != dtype and tensor.dtype not in _NARROWER.get(dtype, ()):
        raise ArtifactError(f"a tensor stored as {tensor.dtype} cannot be restored as {dtype}")
    return tensor.to(dtype)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write `tensors` as safetensors, synced to disk; the same input gives the same bytes, whatever its order.

    Tensors may be views and may share memory: each is written whole. `metadata` is free JSON, kept as canonical JSON
    under one key. The file gets the usual permissions (safetensors alone makes it readable by its owner only).
    Raises ArtifactError if the file cannot be written.
    """
    dense: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            raise InternalError(f"only dense tensors with data can be written, not {name!r}", where=str(path))
        tensor = tensor.cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        dense[name] = tensor
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(dense, path, metadata=None if metadata is None else {METADATA_KEY: canonical_json(metadata)})
        path.chmod(mode)
        sync_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot write the tensors: {error}", where=str(path)) from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, in memory of their own and sorted by name.

    The file is read, not mapped: a mapped file that is changed later changes the tensors, one that is cut short
    ends the process. Raises ArtifactError if the file is missing, truncated or not safetensors.
    """
    try:
        tensors = load_file(path, backend="pread")
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    return {name: tensors[name] for name in sorted(tensors)}


class StoredTensors(Mapping[str, torch.Tensor]):
    """The tensors of an open safetensors file by name, each read into memory of its own whenever it is asked for."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path
        self._names = dict.fromkeys(sorted(file.keys()))

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        try:
            return self._file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _unreadable(self._path, error) from error

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def opened_tensors(path: Path) -> Iterator[StoredTensors]:
    """The tensors of a file, for one who does not need all at once. Read, not mapped, and errors, as `load_tensors`."""
    try:
        file = safe_open(path, framework="pt", backend="pread")
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    with file:
        yield StoredTensors(file, path)


def load_metadata(path: Path) -> dict[str, Any]:
    """The metadata that `save_tensors` was given, `{}` if none; reads the header only. Raises ArtifactError."""
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
        metadata = json.loads(text)
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(metadata, dict):
        raise _unreadable(path, f"its {METADATA_KEY!r} metadata is not a JSON object")
    return metadata


def _holds_exactly(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a round trip through `dtype` gives the same bits; in chunks, so that memory stays bounded."""
    bits = _BITS[tensor.element_size()]
    for chunk in tensor.detach().reshape(-1).split(CHUNK_ELEMENTS):
        if chunk.isnan().any() or not torch.equal(chunk.to(dtype).to(tensor.dtype).view(bits), chunk.view(bits)):
            return False
    return True


def _unreadable(path: Path, reason: object) -> ArtifactError:
    missing = isinstance(reason, FileNotFoundError)
    message = "there is no such file" if missing else f"not a readable safetensors file: {reason}"
    return ArtifactError(message, where=str(path), hint="the file is damaged or incomplete: write or copy it again")
