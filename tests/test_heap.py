"""What is freed between pieces that stay is given back to the system."""

from __future__ import annotations

import ctypes
import subprocess
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


COUNT = """
import resource, sys, torch
from dmq_fx.heap import keep_freed
if sys.argv[1] == "kept":
    keep_freed()
for call in range(6):
    if call == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    values = [torch.ones(2**20) for _ in range(8)]
    del values
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="other allocators keep other things"
)
def test_what_is_freed_is_kept_for_the_next_call() -> None:
    """Pages that are fetched anew: of 32 MiB in each of three calls, or hardly any."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 1000 and faults["given back"] > faults["kept"]
