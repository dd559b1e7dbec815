"""The tasks of requests, and how each kind of them ends when the router stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
Task = asyncio.Task[Any]


class Tasks:
    """Three sets, one for each way to end."""

    def __init__(self) -> None:
        self.running: set[Task] = set()  # waited for, then stopped
        self.legs: set[Task] = set()  # attempts; stopped by who waits for them, never before they began
        self.beside: set[Task] = set()  # nobody waits for these, and a restart would do them again

    def keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that outlives its caller's cancellation and is waited for at the end."""
        task = asyncio.ensure_future(work)
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return task

    def aside(self, work: Coroutine[Any, Any, Any]) -> None:
        """A task that is worth doing, but not worth waiting for when the router stops."""
        task = asyncio.ensure_future(work)
        self.beside.add(task)
        task.add_done_callback(self.beside.discard)

    async def close(self, drain_s: float) -> None:
        """Let what runs finish, then stop the rest. Returns when all of it has ended."""
        if self.running:
            await asyncio.wait(self.running, timeout=drain_s)
        for task in self.beside:
            task.cancel()
        if self.beside:
            await asyncio.wait(self.beside, timeout=5.0)
        while self.running or self.legs:
            for task in tuple(self.running):
                task.cancel()
            await asyncio.wait(self.running | self.legs, timeout=5.0)


def cancel(tasks: Iterable[Task]) -> None:
    """Once each: a second time would end the booking that the first has begun."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()
