"""The constants of native code in a file of their own, mapped into memory where the code reads them.

AOTInductor would keep them in its library and copy them when that is loaded: a large model's weights are in memory
twice then. torch's own format for constants outside of a library cannot hold oneDNN's packed weights. Both files are
part of a package in the cache (`dmq_fx.lowering.packages`): native layout, for this machine alone.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from dmq_fx.artifact.manifest import canonical_json
from dmq_fx.errors import BackendError

BYTES, INDEX = "constants.bin", "constants.json"
ALIGNMENT = 64
"""Bytes: that of AOTInductor's own constants."""

OUTSIDE = {"aot_inductor.package_constants_in_so": False}
"""The setting of Inductor that this module is the other half of."""

_COMPILING = Lock()


@contextmanager
def keep_constants() -> Iterator[dict[str, Tensor]]:
    """Gives the constants of the code that Inductor compiles ahead of time meanwhile, by the names the code has.

    One at a time: the compiler is one for all threads.
    """
    from torch._inductor.codecache import AotCodeCompiler

    found: dict[str, Tensor] = {}

    def keep(cls: type, graph: Any, *args: Any, **kwargs: Any) -> Any:
        names = [name for name in graph.constants if name not in graph.folded_constants]
        found.update({name: graph.get_original_value_of_constant(name) for name in names})
        return compile_code.__get__(None, cls)(graph, *args, **kwargs)

    with _COMPILING:
        compile_code = AotCodeCompiler.__dict__["compile"]
        AotCodeCompiler.compile = classmethod(keep)  # type: ignore[assignment]
        try:
            yield found
        finally:
            AotCodeCompiler.compile = compile_code


def save_constants(folder: Path, constants: Mapping[str, Tensor]) -> None:
    """Write the bytes of tensors on the CPU, dense or packed by oneDNN, as they lie in memory: whole storages."""
    index = []
    with (folder / BYTES).open("wb") as file:
        for name, tensor in constants.items():
            pointer, size = _memory(tensor)
            file.write(b"".ljust(-file.tell() % ALIGNMENT, b"\0"))
            index.append({"name": name, "at": file.tell(), "bytes": size, **_describe(tensor)})
            if size:
                file.write((ctypes.c_char * size).from_address(pointer))
        file.write(b"".ljust(ALIGNMENT, b"\0"))  # an empty file cannot be mapped
    (folder / INDEX).write_text(canonical_json(index) + "\n", encoding="utf-8")


def map_constants(folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """The constants, read when they are used and shared among processes, and the memory that they lie in.

    Packed ones do not hold on to that memory: keep it for as long as they are used. Raises BackendError where torch
    does not make them of their bytes.
    """
    with (folder / BYTES).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    base = torch.frombuffer(mapped, dtype=torch.uint8)
    index = json.loads((folder / INDEX).read_text("utf-8"))
    try:
        return {entry["name"]: _tensor(base, entry) for entry in index}, base
    except (RuntimeError, OSError, AttributeError) as error:
        raise BackendError(
            f"the weights of native code cannot be mapped: {error}",
            where=str(folder / BYTES),
            hint="--no-compile does without native code",
        ) from error


def _describe(tensor: Tensor) -> dict[str, Any]:
    """What makes a tensor of bytes again. packed: oneDNN's own description of its layout."""
    found: dict[str, Any] = {"dtype": str(tensor.dtype)[6:], "shape": list(tensor.shape)}
    if tensor.is_mkldnn:
        return {**found, "packed": torch.ops.mkldnn._get_mkldnn_serialized_md(tensor).tolist()}
    return {**found, "strides": list(tensor.stride()), "offset": tensor.storage_offset()}


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Address and size of a tensor's memory, all of its storage."""
    if tensor.is_mkldnn:
        return torch.ops.mkldnn.data_ptr(tensor), torch.ops.mkldnn._nbytes(tensor)
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _tensor(base: Tensor, entry: dict[str, Any]) -> Tensor:
    if "packed" in entry:
        return _packed(base.data_ptr() + entry["at"], entry)
    dtype = getattr(torch, entry["dtype"])
    if not entry["bytes"]:
        return torch.empty_strided(entry["shape"], entry["strides"], dtype=dtype)
    whole = entry["bytes"] // dtype.itemsize * dtype.itemsize
    memory = base[entry["at"] : entry["at"] + whole].view(dtype)
    return memory.as_strided(entry["shape"], entry["strides"], memory.storage_offset() + entry["offset"])


@cache
def _calls() -> ctypes.CDLL:
    name = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}.get(sys.platform, "libtorch_cpu.so")
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))


@cache
def _capsule_of() -> Any:
    """Python's own call that wraps an address, with a prototype of its own: others may have given it another."""
    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return prototype(("PyCapsule_New", ctypes.pythonapi))


def _packed(address: int, entry: dict[str, Any]) -> Tensor:
    """A tensor over memory that holds oneDNN's layout, made as compiled code makes its own: by AOTInductor's calls."""
    calls = _calls()
    layout = (ctypes.c_uint8 * len(entry["packed"]))(*entry["packed"])
    dims = len(entry["shape"])
    handle = ctypes.c_void_p()
    failed = calls.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(address),
        ctypes.c_int64(dims),
        (ctypes.c_int64 * dims)(*entry["shape"]),
        (ctypes.c_int64 * dims)(),
        ctypes.c_int64(0),
        ctypes.c_int32(getattr(calls, f"aoti_torch_dtype_{entry['dtype']}")()),
        ctypes.c_int32(calls.aoti_torch_device_type_cpu()),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        ctypes.c_int32(calls.aoti_torch_layout__mkldnn()),
        layout,
        ctypes.c_int64(len(layout)),
    )
    if failed:
        raise RuntimeError(f"{entry['name']}: packed weights of shape {entry['shape']} cannot be made of their bytes")
    capsule = _capsule_of()(handle, None, None)
    return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule)  # type: ignore[attr-defined]
