"""The kernels of this project: C++ that is compiled on the machine that runs it, all of it into one library."""

from __future__ import annotations

import ctypes
import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dmq_fx.errors import BackendError

CODE = "own_kernels.so"
SOURCES = ("int8_attention.cpp", "int8_attention_shim.cpp", "norm_quantize.cpp", "norm_quantize_shim.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")

Kernel = Callable[[Any], int]
"""Takes a pointer to its arguments, gives 0, or 1 where there is not enough memory."""


def build_kernels() -> None:
    """Have the kernels compiled and loaded, once per process; they are kept in the user's cache folder.

    Raises BackendError where they cannot be.
    """
    _library()


@cache
def kernel_if_any(name: str) -> Kernel | None:
    """The function of this name; None where kernels cannot be had, with one warning for all of them."""
    library = _library_if_any()
    if library is None:
        return None
    found = getattr(library, name)
    found.argtypes, found.restype = [ctypes.c_void_p], ctypes.c_int
    return found


@cache
def _library() -> ctypes.CDLL:
    from dmq_fx.lowering.packages import PackageCache, machine

    packages = PackageCache()
    key = packages.key_of(kernel=CODE, machine=machine())
    folder = packages.get(key) or packages.put(key, _compile)
    try:
        return ctypes.CDLL(str(folder / CODE), mode=ctypes.RTLD_GLOBAL)  # native code finds the shims by their names
    except OSError as error:
        raise BackendError(f"dmq's own kernels cannot be loaded: {error}", hint="--no-compile") from error


@cache
def _library_if_any() -> ctypes.CDLL | None:
    try:
        return _library()
    except BackendError as error:
        warnings.warn(f"what dmq has own kernels for is computed by plain torch, slowly: {error.message}", stacklevel=2)
        return None


def _compile(folder: Path) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    sources = [str(Path(__file__).with_name(name)) for name in SOURCES]
    torch_folder = Path(torch.__file__).parent
    of_torch = (f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-ltorch_cpu")
    try:
        compiler = [get_cpp_compiler(), *FLAGS, "-fopenmp", "-shared", "-fPIC"]
        command = [*compiler, *sources, *of_torch, "-o", str(folder / CODE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        problem = done.stderr.strip()[-500:] if done.returncode else None
    except (OSError, RuntimeError) as error:  # Inductor finds no compiler
        problem = f"{type(error).__name__}: {error}"[:500]
    if problem is not None:
        raise BackendError(
            f"dmq's own kernels cannot be compiled: {problem}",
            hint="a C++ compiler is needed; without one: --no-compile",
        )
