"""What is freed between pieces that stay is given back to the system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from dmq_fx.heap import give_back, keep_freed


def resident() -> int:
    """Bytes of the process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="other allocators keep other things",
)
def test_holes_are_given_back() -> None:
    pieces = [torch.ones(2**14) for _ in range(2000)]  # 64 KiB each: of the heap, not maps of their own
    kept = pieces[::2]
    full = resident()
    del pieces
    give_back()
    assert full - resident() > 40 * 2**20 and all(bool((piece == 1).all()) for piece in kept)


def test_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    give_back()
    keep_freed()


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="other allocators keep other things"
)
def test_options_of_what_is_kept_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc says 1 of each that it takes."""
    libc, said = ctypes.CDLL(None), []

    class Told:
        @staticmethod
        def mallopt(option: int, size: int) -> int:
            said.append((option, libc.mallopt(option, size)))
            return said[-1][1]

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Told)
    keep_freed()
    assert said == [(-1, 1), (-2, 1), (-3, 1), (1, 1)]
