"""One request on its way, and its attempts: what is fixed, and what they leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from router.ledger import Opening
from router.offers import Offer, Order
from router.providers.base import Job
from router.records import record
from router.routing import Decision, RouteRequest
from router.tasks import cancel
from router.types import Accepted, AttemptSummary, Caller, ImageRequest, PartialImage

CALLED_OFF = "The answer of another target was final, so this attempt was called off."
LEFT = "The client left, and wanted no work to go on without it."

Emit = Callable[[Accepted | PartialImage], Awaitable[None]]


@dataclass(slots=True)
class Work:
    """One request, from its arrival to its answer."""

    request_id: str
    request: ImageRequest  # as it came; the model that serves it may complete it
    order: Order
    caller: Caller
    route: RouteRequest
    started: float
    deadline: float
    emit: Emit | None
    response_format: str
    hurried: bool  # the client said how long it is going to wait
    stretch: float  # how much longer than usual an attempt may take: a job's have their share of its time
    opened: int = 0  # attempts
    task: asyncio.Task[Any] | None = None  # that the request runs in
    running: int = 0  # attempts that a provider works on
    booking: int = 0  # attempts that have ended and are being written down
    race: list[asyncio.Task[Any]] = field(default_factory=list)  # attempts under way, two at most
    raced_at: float = 0.0  # when the first of them began
    ended_at: float = 0.0  # when the latest failure came
    over: str | None = None  # why attempts that still run are called off: the race has its winner, or the client left
    shown: bool = False  # the client has seen a partial picture
    tried: list[str] = field(default_factory=list)
    attempts: list[AttemptSummary] = field(default_factory=list)
    provider_s: float = 0.0
    accepted: bool = False
    retry_after_s: float | None = None

    def call_off(self) -> list[asyncio.Task[Any]]:
        """End the race: what else still runs or is about to is stopped. It is booked when these tasks are done."""
        self.over = self.over or CALLED_OFF
        current = asyncio.current_task()
        others = [task for task in self.race if task is not current and not task.done()]
        cancel(others)
        return others

    async def tell(self, event: Accepted | PartialImage) -> None:
        """Show a streaming client what happens. A client that is gone is told no more; the work goes on."""
        if self.emit is None:
            return
        try:
            if not self.accepted:
                self.accepted = True
                await self.emit(Accepted())
            if isinstance(event, PartialImage) and len(self.race) < 2:  # of two attempts, nobody knows which will win
                self.shown = True
                await self.emit(event)
        except Exception:
            self.emit = None


@record
class Attempt:
    """One try of one target, open in the ledger."""

    work: Work
    offer: Offer
    request: ImageRequest  # as the offer's model completes it
    decision: Decision
    opening: Opening
    started: float
    reason: str  # why this target, in one sentence
    jobs: list[Job] = field(default_factory=list)
