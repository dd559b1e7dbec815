"""Ids of requests and attempts: unique and sortable by time. They are names, not secrets: nothing opens with one."""

from __future__ import annotations

import os
import random
import time

# Seeded from the system once. Asking it for every id is a system call that gives up the interpreter lock, and under
# load getting the lock back costs more than the rest of a request's bookkeeping.
_random = random.Random(os.urandom(32))  # noqa: S311 - ids are no secrets


def new_id(prefix: str) -> str:
    """``prefix_``, 48 bits of milliseconds and 80 random bits, as hexadecimal digits."""
    return f"{prefix}_{time.time_ns() // 1_000_000 << 80 | _random.getrandbits(80):032x}"
