"""The system's time and ids, asked for in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Clock:
    """What everything below the API asks, so that tests can hold time still."""

    now: Callable[[], datetime]  # UTC wall clock: dates prices and rows
    monotonic: Callable[[], float]  # seconds: measures durations, drives the selector
    new_id: Callable[[], str]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
