"""Kernels that are compiled on the machine: once, and by plain torch where they cannot be."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dmq_fx.errors import BackendError
from dmq_fx.lowering import int8_attention, norm_quantize, own_kernels
from dmq_fx.lowering.own_kernels import build_kernels


def attention() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 2, 30, 40), (2, 2, 77, 40), (2, 2, 77, 40))
    integers = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]
    scales, zero_points = torch.tensor([0.02, 0.015, 1 / 255, 0.03]), torch.tensor([128, 120, 0, 131])
    return (*integers, scales, zero_points, 40**-0.5, 0, 255)


def image() -> tuple[Any, ...]:
    x = torch.randn((2, 24, 5, 7), generator=torch.Generator().manual_seed(0))
    return x, None, None, 4, 1e-5, True, torch.tensor(20.0), torch.tensor(100), 0, 255, (1, 1)


def results() -> tuple[Tensor, Tensor]:
    return int8_attention.INT8_ATTENTION(*attention()), norm_quantize.NORM_QUANTIZE(*image())


def equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


CACHES = (own_kernels._library, own_kernels._library_if_any, own_kernels.kernel_if_any)


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Nothing is loaded yet, and nothing is in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for cached in CACHES:
        cached.cache_clear()
    yield monkeypatch
    for cached in CACHES:
        cached.cache_clear()


def fail(*_: Any, **__: Any) -> Any:
    raise FileNotFoundError("no such compiler")


def break_source(command: list[str], **options: Any) -> Any:
    return REAL_RUN([*command, "-include", "nowhere.h"], **options)


REAL_RUN = subprocess.run


@pytest.mark.parametrize("run", [fail, break_source])
def test_without_a_compiler(no_kernel: pytest.MonkeyPatch, run: Any) -> None:
    no_kernel.setattr(own_kernels.subprocess, "run", run)
    no_kernel.setattr(int8_attention, "CHUNK", 1000)
    reason = r"cannot be compiled: .*[Nn]o(where|.such|.working)(.|\n)*without one: --no-compile"
    with pytest.raises(BackendError, match=reason):
        build_kernels()
    with pytest.warns(UserWarning, match="by plain torch, slowly"):
        attended = int8_attention.INT8_ATTENTION(*attention())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = results()
        parts = int8_attention.attention_parts(*attention())
    assert torch.equal(attended, found[0]) and found[0].transpose(1, 2).is_contiguous()
    assert equal(found, (parts.output, norm_quantize.reference(*image())))
    assert torch.equal(parts.output, int8_attention.reference_parts(*attention()).output)


def test_a_library_that_cannot_be_loaded(no_kernel: pytest.MonkeyPatch) -> None:
    no_kernel.setattr(own_kernels, "_compile", lambda folder: (folder / own_kernels.CODE).write_text("no code"))
    with pytest.raises(BackendError, match="cannot be loaded"):
        build_kernels()


def test_is_compiled_once(no_kernel: pytest.MonkeyPatch) -> None:
    expected = results()
    for cached in CACHES:
        cached.cache_clear()
    no_kernel.setattr(own_kernels.subprocess, "run", fail)
    assert equal(results(), expected)
