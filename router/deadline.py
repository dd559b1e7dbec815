"""A limit of time around waiting, for what is done at every request."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Deadline:
    """``with Deadline(5.0) as deadline:`` raises TimeoutError when the block takes longer; None: as long as it likes.

    What asyncio.timeout does, in the same words of cancelling, for a third of its cost, of which a request
    would pay several times.
    """

    __slots__ = ("_cancelling", "_due", "_loop", "_seconds", "_task", "_timer", "expired")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self.expired = False

    def __enter__(self) -> Deadline:
        if self._seconds is not None:
            self._loop = asyncio.get_running_loop()
            task = asyncio.current_task(self._loop)
            if task is None:
                raise RuntimeError("a deadline is a task's")
            self._task, self._cancelling = task, task.cancelling()
            self._due = 0.0
            self._timer = self._loop.call_later(self._seconds, self._end)
        return self

    def again(self) -> None:
        """Count from now: something has come."""
        if self._seconds is not None:
            self._due = self._loop.time() + self._seconds

    def _end(self) -> None:
        rest = self._due - self._loop.time()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._end)
        else:
            self.expired = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            if self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error
