"""Memory that was freed and that the allocator keeps: given back to the system where weights have changed places."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Return the free pages of the heap (glibc; does nothing elsewhere).

    Packed weights are aligned, and do not fit the holes that unpacked ones of their size leave.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
