"""A second attempt beside one that is probably stuck: when it starts, which of the two wins, what stops the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from router.attempt import Attempts, Made
from router.clock import Clock
from router.errors import ErrorKind, ProviderError
from router.events import Observer
from router.records import record
from router.routing import Selector
from router.tasks import Tasks, cancel
from router.work import Attempt

WATCH_S = 1.0  # so often running attempts are looked at

Second = Callable[[Attempt], Awaitable[Attempt | None]]


@record
class _Watched:
    """A first attempt, that may yet want a second one beside it."""

    attempt: Attempt
    turn: asyncio.Future[None]  # until who waits for the attempt must look
    alarms: list[asyncio.Future[None]]  # when a second target is to be asked

    def wake(self, _: asyncio.Future[Any]) -> None:
        """It has ended, or a second target is to be asked."""
        if not self.turn.done():
            self.turn.set_result(None)


class Race:
    """Runs attempts, two beside each other where the first is probably stuck."""

    def __init__(
        self, *, attempts: Attempts, selector: Selector, observer: Observer, clock: Clock, tasks: Tasks
    ) -> None:
        self._attempts = attempts
        self._selector = selector
        self._observer = observer
        self._clock = clock
        self._tasks = tasks
        self._waiting: dict[str, _Watched] = {}  # by attempt id
        self._watch: asyncio.TimerHandle | None = None  # runs while attempts do

    async def run(self, attempt: Attempt, second: Second) -> Made:
        """The attempt; and a second one elsewhere, if it turns out that this one is probably stuck.

        ``second`` opens that one; None if there is none to be had now. If this is cancelled, both are booked before it
        ends.
        Raises ProviderError when all have failed, or when one was refused for its content, which ends the other too.
        """
        work, attempt_id = attempt.work, attempt.opening.attempt_id
        loop = asyncio.get_running_loop()
        work.raced_at = attempt.started
        watched = self._waiting[attempt_id] = _Watched(attempt, loop.create_future(), [])
        first = self._start(attempt, watched)
        if self._watch is None:
            self._watch = loop.call_later(WATCH_S, self._look)
        if work.hurried or attempt.decision.mode == "probe" or self._selector.settings.rescue:
            self._set_alarm(watched)
        try:
            await watched.turn
            if not first.done() and (other := await second(attempt)) is not None:
                return await self._both(watched, first, other)
            return await first
        except ProviderError:
            work.provider_s += work.ended_at - work.raced_at
            raise
        except asyncio.CancelledError:
            cancel((first,))
            await asyncio.wait((first,))  # until it is booked
            raise
        finally:
            del self._waiting[attempt_id]
            for alarm in watched.alarms:
                alarm.cancel()
            work.race.clear()

    def _start(self, attempt: Attempt, watched: _Watched) -> asyncio.Task[Made]:
        def ended(leg: asyncio.Task[Made]) -> None:
            self._tasks.legs.discard(leg)
            leg.cancelled() or leg.exception()  # nobody need fetch how a loser ended
            watched.wake(leg)

        task = asyncio.ensure_future(self._attempts.run(attempt))
        self._tasks.legs.add(task)
        task.add_done_callback(ended)
        return task

    def _look(self) -> None:
        """While attempts run: whether a target has stopped answering."""
        self._watch = asyncio.get_running_loop().call_later(WATCH_S, self._look) if self._waiting else None
        for attempt_id in self._selector.stuck(self._clock.monotonic()):
            if (watched := self._waiting.get(attempt_id)) is not None:
                self._set_alarm(watched)

    def _set_alarm(self, watched: _Watched) -> None:
        """Wake it when a second target is worth its money, if it will be."""
        attempt, now = watched.attempt, self._clock.monotonic()
        work = attempt.work
        after_s = self._selector.rescue_after(work.route, attempt.decision, now, wanted=work.hurried)
        if after_s is None:
            return
        alarm = asyncio.ensure_future(self._clock.sleep(max(attempt.started + after_s - now, 0.0)))
        alarm.add_done_callback(watched.wake)
        watched.alarms.append(alarm)

    async def _both(self, watched: _Watched, first: asyncio.Task[Made], second: Attempt) -> Made:
        """The first success of two attempts. The other is stopped and booked."""
        legs = [first, self._start(second, watched)]
        failure: ProviderError | None = None
        won = False
        try:
            pending = set(legs)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for leg in done:
                    if leg.cancelled():
                        continue
                    error = leg.exception()
                    if error is None:
                        won = leg is not first
                        return leg.result()
                    if not isinstance(error, ProviderError):
                        raise error
                    if error.kind is not ErrorKind.CANCELLED:
                        failure = error
            raise failure or asyncio.CancelledError
        finally:
            cancel(legs)
            offer, other = watched.attempt.offer, second.offer
            self._observer.rescue(other.model.slug, offer.target.provider, other.target.provider, won)
