"""Memory that was freed: given back where weights have changed places, kept where calls follow each other."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Return the free pages of the heap (glibc; does nothing elsewhere).

    Packed weights are aligned, and do not fit the holes that unpacked ones of their size leave.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> None:
    """Have the heap keep up to half a gigabyte that was freed, for the next call (glibc; does nothing elsewhere).

    A denoiser's values are freed in every call and asked for again in the next. By itself glibc returns them to the
    system in between, and every page of them is fetched and cleared anew: 3 to 10 % of a call. `give_back` still does.

    Nor does it keep the smallest pieces apart (fastbins): with every large one that is asked for or freed glibc would
    join all of those, which takes a seventh of a small network's call.
    """
    largest_fast, trim_threshold, top_pad, mmap_threshold = 1, -1, -2, -3
    options = ((trim_threshold, 2**29), (top_pad, 2**26), (mmap_threshold, 2**25), (largest_fast, 0))
    with suppress(AttributeError, OSError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        for option, size in options:
            set_option(option, size)
