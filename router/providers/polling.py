"""Asking about a job until it is done. Connections that fail in passing are the transport's to repeat."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import httpx

from router.errors import Billed, ErrorKind, ProviderError
from router.providers.base import Call

FIRST_S = 0.25
LAST_S = 2.0
GROWTH = 1.1
"""The pause is a tenth of the time waited so far, within these bounds: 22 questions in the first 17 seconds, and the
answer is noticed about 5 % late."""

PATIENCE = 3
"""Questions in a row that say nothing about the job, after which the flow gives up. The job may go on and be billed."""


class Waits:
    """The growing pauses of one job, in seconds."""

    __slots__ = ("_next_s",)

    def __init__(self, first_s: float = FIRST_S) -> None:
        self._next_s = first_s

    def next_s(self) -> float:
        pause = self._next_s
        self._next_s = min(pause * GROWTH, LAST_S)
        return pause


def ask(question: httpx.Request, waits: Waits) -> Generator[Call, Any, httpx.Response]:
    """One question about a job, until it is answered with 2xx. Raises NO_ANSWER when it is not: the job was accepted,
    so whatever the status says of the question, the outcome of the job is unknown.
    """
    for _ in range(PATIENCE):
        response: httpx.Response = yield Call(question, after_s=waits.next_s())
        if response.is_success:
            return response
        if response.status_code < 500 and response.status_code not in (404, 408, 409, 425, 429):
            break
    raise lost(status=response.status_code)


def lost(message: str = "The provider could not be asked about the job.", status: int | None = None) -> ProviderError:
    """The job was accepted and its outcome is unknown."""
    return ProviderError(ErrorKind.NO_ANSWER, message, status=status, billed=Billed.MAYBE)
