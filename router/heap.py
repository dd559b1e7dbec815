"""How the C library keeps memory that was freed: pictures come and go all day, and asking anew for each costs more.

glibc gives the end of its heap back to the kernel whenever a few megabytes there are free, and the next picture's pages
are then faulted in and zeroed one by one: 400 faults for a reply of 1.5 MB, a fifth of all the CPU it takes (2026-11).
What is kept beyond the pictures in flight, their peak needed; up to the bound here.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

KEEP_FREE_BYTES = 64 * 1024 * 1024
"""Freed memory that is kept for the next picture."""

_M_TRIM_THRESHOLD = -1  # of malloc.h
_M_MMAP_THRESHOLD = -3
_MMAP_BYTES = 32 * 1024 * 1024  # the most glibc allows; larger blocks come from the kernel and go back to it at once


def keep_freed(environ: Mapping[str, str] = os.environ) -> bool:
    """Keep what is freed; whether that was done. Not where the operator has set MALLOC_*, nor outside glibc."""
    if any(name.startswith("MALLOC_") for name in environ) or "GLIBC_TUNABLES" in environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEEP_FREE_BYTES))
