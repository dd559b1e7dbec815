"""Asking about a job until it is done."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import httpx

from router.errors import Billed, ErrorKind, ProviderError
from router.providers.base import Call

FIRST_S = 0.25
LAST_S = 2.0
GROWTH = 1.1
"""The pause is a tenth of the time waited so far, within these bounds: 22 questions in the first 17 seconds, and the
answer is noticed about 5 % late."""

PATIENCE = 5
"""Failed questions in a row after which the flow gives up. The job itself goes on and may be billed."""


def passing(response: httpx.Response) -> bool:
    """Whether an answer to a question says nothing about the job: worth asking again."""
    return response.status_code >= 500 or response.status_code in (404, 408, 409, 425, 429)


class Waits:
    """The growing pauses of one job."""

    __slots__ = ("_next_s",)

    def __init__(self, first_s: float = FIRST_S) -> None:
        self._next_s = first_s

    def next_s(self) -> float:
        pause = self._next_s
        self._next_s = min(pause * GROWTH, LAST_S)
        return pause


def ask(
    request: httpx.Request, waits: Waits, again: Callable[[httpx.Response], bool] = passing, *, now: bool = False
) -> Generator[Call, Any, httpx.Response]:
    """One question about a job, repeated while the asking fails for reasons that are not the job's (``again``).

    A status that lasts, or anything else, is returned for the adapter to read. A connection that keeps failing is
    NO_ANSWER, never "not sent": the job was accepted before. ``now`` asks the first time without a pause.
    """
    failures = 0
    while True:
        try:
            response: httpx.Response = yield Call(request, after_s=0.0 if now and not failures else waits.next_s())
        except ProviderError as error:
            failures += 1
            if error.kind not in (ErrorKind.NOT_SENT, ErrorKind.NO_ANSWER):
                raise
            if failures >= PATIENCE:
                raise lost(error.message) from error
            continue
        failures += 1
        if failures >= PATIENCE or not again(response):
            return response


def lost(message: str = "The provider could not be asked about the job.", status: int | None = None) -> ProviderError:
    """The job was accepted and its outcome is unknown."""
    return ProviderError(ErrorKind.NO_ANSWER, message, status=status, billed=Billed.MAYBE)
