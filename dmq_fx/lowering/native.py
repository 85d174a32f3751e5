"""A lowered graph as native code: exported once more, compiled by AOTInductor, loaded from this machine's cache."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.artifact.manifest import canonical_json
from dmq_fx.artifact.tensors import load_tensors
from dmq_fx.errors import BackendError
from dmq_fx.heap import keep_freed
from dmq_fx.lowering import shifted  # noqa: F401  operators that the code may call
from dmq_fx.lowering.constants import OUTSIDE, keep_constants, map_constants, save_constants
from dmq_fx.lowering.own_kernels import build_kernels
from dmq_fx.lowering.packages import PackageCache
from dmq_fx.lowering.shims import OF_SHIMS, calls_own_kernels
from dmq_fx.tracing import TracedModel
from dmq_fx.tracing.call import describe_call

CODE, TIMES, CALL = "code.pt2", "timesteps.safetensors", "call.json"
LARGEST_BATCH = 4096
LARGEST_DISAGREEMENT = 0.5
"""Relative error (L2) of native code beside its graph that is taken for a mistake. Unrelated values have 1 and more."""

SETTINGS = {"freezing": True, "cpp.dynamic_threads": True, "realize_reads_threshold": 12}
"""Constants (packed weights) are computed when compiling; the number of threads is that of the process that runs it.
A norm reads an image, its statistics and its parameters: with Inductor's own limit of reads its result would be written
and read again before the quantize node behind it."""

OfTimestep = dict[float, tuple[Tensor, Tensor]]
_FAULT = "this is a fault of the compiler or of dmq, please report it; --no-compile does without"


def example_inputs(traced: TracedModel, batch: int = 2) -> tuple[Tensor, ...]:
    """Inputs of the traced shapes on the CPU, all zeros, for `batch` samples."""
    found = []
    for entry, example in zip(traced.inputs, traced.example, strict=True):
        shape = [batch, *example.shape[1:]] if entry.batched else list(example.shape)
        found.append(torch.zeros(shape, dtype=example.dtype))
    return tuple(found)


def random_inputs(traced: TracedModel, batch: int = 2) -> tuple[Tensor, ...]:
    """As `example_inputs`, with normally distributed numbers in place of the zeros of floating-point inputs."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(zeros.shape, generator=generator).to(zeros.dtype) if zeros.is_floating_point() else zeros
        for zeros in example_inputs(traced, batch)
    )


def write_package(
    folder: Path,
    body: fx.GraphModule,
    traced: TracedModel,
    extra: tuple[Tensor, ...],
    known: OfTimestep,
    settings: Mapping[str, Any] = MappingProxyType(SETTINGS),
) -> None:
    """Compile `body` into `folder`, with what its time part gives for some timesteps and how it is called.

    body: changed in place (`hide_from_patterns`). extra: inputs of the body beyond the graph's own.
    settings: of Inductor. Raises BackendError if compiling fails.
    """
    from dmq_fx.lowering.time_part import reads_timestep
    from dmq_fx.lowering.without_kernel import hide_from_patterns

    own = calls_own_kernels(body.graph)
    if own:
        build_kernels()
    call = {
        **describe_call(traced),
        "time_part": [len(part) for part in extra],
        "reads_timestep": reads_timestep(body, traced),
        "own_kernels": own,
    }
    hide_from_patterns(body)
    try:
        with quiet_compiler(), torch.no_grad(), keep_constants() as constants, sums_in_memory_of_their_own():
            exported = torch.export.export(
                body, (*example_inputs(traced), *extra), dynamic_shapes=_dynamic(traced, len(extra)), strict=False
            )
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(folder / CODE), inductor_configs={**settings, **OUTSIDE, **OF_SHIMS}
            )
        save_constants(folder, constants)
    except Exception as error:  # whatever export, Inductor or the C++ compiler raises
        raise BackendError(
            f"the lowered graph cannot be compiled: {type(error).__name__}: {str(error)[:500]}",
            hint="a C++ compiler is needed; without one: --no-compile",
        ) from error
    _save_known(folder / TIMES, known)
    (folder / CALL).write_text(canonical_json(call) + "\n")


def require_agreement(folder: Path, body: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
    """Run a package beside the graph that it was compiled from; raises BackendError where it computes something else.

    inputs: of `body`, all of them. One rounding that falls the other way moves integers after it, so a good package is
    some hundredths away; one that a compiler's mistake is in has nothing to do with the graph. Code that writes into
    its inputs is refused as well.
    """
    given = tuple(x.clone() for x in inputs)
    with torch.no_grad():
        expected, found = body(*inputs), load_package(folder)[0](*given)
    if not all(torch.equal(x, y) for x, y in zip(inputs, given, strict=True)):
        raise BackendError("the native code of this artifact changes its inputs", hint=_FAULT)
    for one, other in zip(found, expected, strict=True):
        error = float((one - other).float().norm() / other.float().norm().clamp_min(1e-12))
        if not error < LARGEST_DISAGREEMENT:
            raise BackendError(
                f"the native code of this artifact does not compute what its graph does: relative error {error:.2g}",
                hint=_FAULT,
            )


def load_package(folder: Path) -> tuple[Callable[..., Any], OfTimestep, dict[str, Any]]:
    """The compiled body, its known timesteps, and the description of its calls; `folder` comes from a PackageCache."""
    call = json.loads((folder / CALL).read_text("utf-8"))
    if call["own_kernels"]:
        build_kernels()
    code = NativeCode(folder)
    tensors = load_tensors(folder / TIMES)
    rows = zip(tensors["timesteps"].tolist(), tensors["floats"], tensors["integers"], strict=True)
    known = {float(timestep): (floats, integers) for timestep, floats, integers in rows}
    return code, known, call


class NativeCode:
    """Compiled code as a function of flat tensors that gives a list of them; `folder` comes from a PackageCache.

    Not by torch's own wrapper, which imports the compiler and parses how its arguments are nested in every call.
    constants: those of the code, by name, in the mapped file. torch never frees the tensors that it is handed for them;
    other memory may displace the file's. Raises BackendError where they cannot be mapped.
    """

    def __init__(self, folder: Path) -> None:
        keep_freed()
        self.constants, self._memory = map_constants(folder)
        loader = torch._C._aoti.AOTIModelPackageLoader  # type: ignore[attr-defined]
        self._loader = loader(str(folder / CODE), "model", False, 1, -1)
        self._loader.update_constant_buffer(self.constants, False, True, True)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return self._loader.boxed_run(list(inputs))


def package_key(digest: str, backend: str, **options: Any) -> str:
    """The key of an artifact's code by a backend on this machine."""
    from dmq_fx.lowering.packages import machine

    return PackageCache.key_of(artifact=digest, backend=backend, machine=machine(), **options)


def _dynamic(traced: TracedModel, extra: int) -> tuple[Any, ...]:
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)

    def of(entry: Any) -> dict[int, Any] | None:
        dims: dict[int, Any] = {0: batch} if entry.batched else {}
        dims |= {i: torch.export.Dim.AUTO for i, size in enumerate(entry.dims) if size is None and i not in dims}
        return dims or None

    return (*(of(entry) for entry in traced.inputs), *([None] * extra))


def _save_known(path: Path, known: OfTimestep) -> None:
    from safetensors.torch import save_file

    floats = [floats for floats, _ in known.values()] or [torch.empty(0)]
    integers = [integers for _, integers in known.values()] or [torch.empty(0, dtype=torch.int64)]
    tensors = {
        "timesteps": torch.tensor(list(known), dtype=torch.float64),
        "floats": torch.stack(floats) if known else torch.empty(0, 0),
        "integers": torch.stack(integers) if known else torch.empty(0, 0, dtype=torch.int64),
    }
    save_file(tensors, path)


@contextlib.contextmanager
def sums_in_memory_of_their_own() -> Iterator[None]:
    """Keeps Inductor from adding a product to its residual where the residual lies; within `keep_constants`.

    It would do so even where that is an input of the graph, which is the caller's, or a view of what is read once more
    afterwards (torch 2.13: int8 products with "sum", and the latter convolutions without a kernel, too). A sum with
    memory of its own costs the same.
    """
    from torch._inductor.fx_passes import mkldnn_fusion

    kept = {name: getattr(mkldnn_fusion, name) for name in ("_qlinear_binary_can_be_inplace", "_can_be_inplace")}
    for name in kept:
        setattr(mkldnn_fusion, name, lambda other: False)
    try:
        yield
    finally:
        for name, found in kept.items():
            setattr(mkldnn_fusion, name, found)


@contextlib.contextmanager
def quiet_compiler() -> Iterator[None]:
    """Keeps the remarks of export and Inductor from the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch._inductor", "torch.export", "torch._export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
