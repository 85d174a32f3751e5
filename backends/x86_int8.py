"""int8 on x86 CPUs: oneDNN's convolutions and matrix products on VNNI or AMX, everything between in bfloat16; attention
and norms by kernels of dmq's own.

Integers are those of fake quantization (`dmq_fx.lowering.parity` measures it site by site); what lies between sites is
computed in bfloat16 where the CPU multiplies it fast, else in float32. Native code that is kept runs without torch's
compiler and without what makes integers: both are imported where they are needed.
"""

from __future__ import annotations

import platform
import secrets
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmq_fx.backend_api import BACKENDS, Kept, LoweringOptions
from dmq_fx.errors import BackendError
from dmq_fx.lowering.cpu import multiplies_exactly
from dmq_fx.lowering.module import LoweredModule, OfTimestep
from dmq_fx.lowering.native import OfTimestep as Rows
from dmq_fx.lowering.native import (
    example_inputs,
    load_package,
    package_key,
    random_inputs,
    require_agreement,
    write_package,
)
from dmq_fx.lowering.packages import PackageCache
from dmq_fx.tracing.call import rebuild_call

if TYPE_CHECKING:
    from dmq_fx.lowering.kernels import Kernel
    from dmq_fx.lowering.time_part import TimePart
    from dmq_fx.program import Program

NAME = "x86_int8"


class X86Int8:
    """int8 kernels where a site's integers fit them; native code that is kept on this machine."""

    @staticmethod
    def kernels(program: Program) -> dict[str, Kernel]:
        from dmq_fx.lowering.kernels import int8_kernels

        return int8_kernels(program)

    @staticmethod
    def check(dtype: torch.dtype) -> None:
        check_cpu(torch.device("cpu"))
        _check_model(dtype)

    @staticmethod
    def lower(program: Program, options: LoweringOptions) -> nn.Module:
        from dmq_fx.lowering.fold import fold_packed_weights
        from dmq_fx.lowering.rewrite import a_timestep, rewrite
        from dmq_fx.lowering.time_part import reads_timestep

        check_cpu(options.device)
        dtype = _dtype(options)
        for example in program.traced.example:
            _check_model(example.dtype)
        parts = rewrite(program, dtype)
        reads = reads_timestep(parts.body, program.traced)
        _hand_over(program, parts)
        if not options.compile:
            return LoweredModule(program.traced, fold_packed_weights(parts.body), parts.time, reads_timestep=reads)
        known = {float(t): parts.time(t) for t in _calibrated(program)} if parts.time is not None else {}
        extra = parts.time(a_timestep(program, example_inputs(program.traced))) if parts.time is not None else ()
        cache = PackageCache()
        key = _key(options, dtype)
        folder = cache.get(key)
        if folder is None:
            options.progress("compiling native code for this CPU", 0, 0)
            folder = cache.put(key, lambda path: _write(path, program, parts, extra, known))
        code, known, _ = load_package(folder)
        return LoweredModule(program.traced, code, parts.time, known, reads_timestep=reads)

    @staticmethod
    def kept(options: LoweringOptions, reload: Callable[[], Program]) -> Kept | None:
        if not options.compile or not options.digest:
            return None
        check_cpu(options.device)
        dtype = _dtype(options)
        folder = PackageCache().get(_key(options, dtype))
        if folder is None:
            return None
        code, known, call = load_package(folder)
        time = _time_part_of(reload, dtype, call["time_part"]) if call["time_part"] else None
        lowered = LoweredModule(rebuild_call(call), code, time, known, reads_timestep=call["reads_timestep"])
        return Kept(lowered, call)

    @staticmethod
    def site_errors(fake: Program, program: Program, inputs: Sequence[Tensor]) -> dict[str, float]:
        from dmq_fx.lowering.int8_sites import lower_sites
        from dmq_fx.lowering.kernels import int8_kernels
        from dmq_fx.lowering.parity import site_errors
        from dmq_fx.tracing import retarget

        for each in (fake, program):
            retarget(each.graph_module, "cpu")
        lower_sites(program, int8_kernels(program))
        return site_errors(fake, program, inputs)


def _hand_over(program: Program, parts: TimePart) -> None:
    """Leave the weights to the parts alone, which let them go one by one as they are packed."""
    from dmq_fx.program.graph_tools import drop_tensors

    if parts.body is not program.graph_module:
        drop_tensors(program.graph_module)
    program.graph_module, program.weights = parts.body, {}


def _write(path: Path, program: Program, parts: TimePart, extra: tuple[Tensor, ...], known: Rows) -> None:
    """Compile the body into `path`, and see that what came out computes what the body does."""
    from dmq_fx.lowering.fold import fold_packed_weights

    write_package(path, parts.body, program.traced, extra, known)
    require_agreement(path, fold_packed_weights(parts.body), (*random_inputs(program.traced), *extra))


def _time_part_of(reload: Callable[[], Program], dtype: torch.dtype, sizes: Sequence[int]) -> OfTimestep:
    """The time part of an artifact, read when a timestep comes that was not calibrated.

    sizes: of what it gives, as the code that is kept takes it.
    """

    @cache
    def part() -> OfTimestep:
        from dmq_fx.lowering.rewrite import rewrite

        found = rewrite(reload(), dtype).time
        assert found is not None
        return found

    def of(timestep: Tensor) -> tuple[Tensor, Tensor]:
        found = part()(timestep)
        if [len(one) for one in found] != list(sizes):
            raise BackendError(
                "the native code that is kept of this artifact does not fit what it computes from a timestep",
                hint=f"remove {PackageCache().root}, and please report it; --no-compile does without",
            )
        return found

    return of


def check_cpu(device: torch.device) -> None:
    """Raise BackendError where int8 kernels are missing or add up wrongly."""
    if device.type != "cpu":
        raise BackendError(f"{NAME} runs on the CPU, not on {device.type}", hint="--device cpu, or another --backend")
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.cpu._is_vnni_supported():
        raise BackendError(
            f"{NAME} needs an x86 CPU with AVX-512 and VNNI; this one has {torch.backends.cpu.get_cpu_capability()}",
            hint="--backend fake_quant computes the same integers in floating point, more slowly",
        )
    if not multiplies_exactly():
        raise BackendError(
            "int8 products are rounded on this CPU as it is set up",
            hint="is ONEDNN_MAX_CPU_ISA set? VNNI is needed for sums that do not saturate",
        )


def _check_model(dtype: torch.dtype) -> None:
    if dtype in (torch.float16, torch.bfloat16):
        raise BackendError(f"{NAME} takes artifacts of float32 models", hint="compile the recipe without --dtype")


def default_dtype() -> torch.dtype:
    """bfloat16 on CPUs that multiply it fast."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def _calibrated(program: Program) -> list[Tensor]:
    """The calibrated timesteps as the graph takes them, [1] each."""
    if program.timestep_position is None:
        return []
    traced = program.traced.inputs[program.timestep_position].dtype
    whole = all(float(step).is_integer() for step in program.timesteps)
    return [step.reshape(1).to(traced if whole else torch.float32) for step in program.timesteps]


def _dtype(options: LoweringOptions) -> torch.dtype:
    """What is computed between kernels: in float32 without native code, which keeps what it fuses in float32 anyway."""
    found = options.dtype or (default_dtype() if options.compile else torch.float32)
    if found not in (torch.float32, torch.bfloat16):
        raise BackendError(f"{NAME} computes in float32 or bfloat16 between its kernels, not in {found}")
    return found


def _key(options: LoweringOptions, dtype: torch.dtype) -> str:
    """A program that is no artifact has nothing to be found again by: its code is its own."""
    return package_key(options.digest or secrets.token_hex(16), NAME, dtype=str(dtype))


BACKENDS.register(NAME)(X86Int8())
