"""The books of an attempt: its row before the call leaves, how it ended, and everybody who is told.

Ledger, budgets, agreements, selector and observer hear of it here, each in its turn. What they are told is shaped in
``booking``.
"""

from __future__ import annotations

import asyncio
import contextlib

from pricing import Cost, Usage
from pricing import Settlement as Priced
from router import booking
from router.budgets import Budgets
from router.clock import Clock
from router.errors import SERVER, Billed, ErrorKind, ProviderError, RequestError
from router.events import Observer
from router.ledger import Ledger, LedgerError, Role, Settlement, State
from router.offers import Agreements, Offer
from router.providers.base import Job
from router.routing import Decision, Outcome, Selector
from router.tasks import Tasks
from router.transport import Ran
from router.types import ImageResult
from router.work import LEFT, Attempt, Work


class Accounting:
    """Opens attempts and books how they end."""

    def __init__(
        self,
        *,
        selector: Selector,
        ledger: Ledger,
        budgets: Budgets,
        agreements: Agreements,
        observer: Observer,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        self._selector = selector
        self._ledger = ledger
        self._budgets = budgets
        self._agreements = agreements
        self._observer = observer
        self._clock = clock
        self._tasks = tasks

    async def open(self, work: Work, offer: Offer, decision: Decision, role: Role, attempt_id: str) -> Attempt:
        """The attempt, its row durable. RequestError if that is impossible; then nothing may be sent."""
        work.opened += 1
        request = offer.request(work.request)
        opening = booking.opening(
            attempt_id,
            self._clock.now(),
            work.request_id,
            request,
            work.caller,
            offer,
            decision,
            role,
            attempt_no=work.opened,
        )
        self._budgets.hold(attempt_id, work.caller, opening.estimate_nanos, opening.opened_at)
        try:
            await self._ledger.open(opening)
        except asyncio.CancelledError:
            self._budgets.settle(attempt_id, 0, opening.currency, known=True)
            raise
        except LedgerError as error:
            self._budgets.settle(attempt_id, 0, opening.currency, known=True)
            raise RequestError(
                503,
                "The cost ledger cannot be written, so nothing was sent to a provider.",
                code="ledger_unavailable",
                type=SERVER,
                retry=True,
                retry_after_s=5.0,
            ) from error
        return Attempt(work, offer, request, decision, opening, self._clock.monotonic(), decision.reason)

    def started(self, attempt: Attempt) -> None:
        """Its call leaves now."""
        target = attempt.offer.target
        self._selector.on_start(target.key, attempt.work.route, attempt.started, attempt.opening.attempt_id)
        self._observer.attempt_started(target.provider)

    async def job(self, attempt: Attempt, job: Job) -> None:
        """The provider has taken it as a job, which can be asked for after a crash: durable when this returns."""
        attempt.jobs.append(job)
        self._selector.on_progress(attempt.opening.attempt_id, "submitted", self._clock.monotonic())
        await self._ledger.job(attempt.opening.attempt_id, job.id, job.state)

    async def succeeded(self, attempt: Attempt, ran: Ran, result: ImageResult) -> Settlement:
        """``result`` is what it made, fetched and measured."""
        work, offer = attempt.work, attempt.offer
        work.running, work.booking = work.running - 1, work.booking + 1
        now = self._clock.monotonic()
        duration_s = now - attempt.started
        sizes = tuple(image.size for image in result.images if image.size is not None)
        usage, priced = offer.consumed(result, sizes)
        cost = self._agreements.cost(offer.provider.prices, offer.price, priced.charge, attempt.opening)
        settled = await self._settle(
            attempt, priced, cost, State.SETTLED, "success", duration_s, ran=ran, usage=usage, delivered=True
        )
        total = cost.effective_nanos
        for phase, after_s in (("queued", result.queue_s), ("first_byte", ran.ttfb_s)):
            if after_s is not None:
                self._selector.on_progress(attempt.opening.attempt_id, phase, attempt.started + after_s)
        self._selector.on_end(attempt.opening.attempt_id, Outcome.success(duration_s, total), now)
        work.provider_s += now - work.raced_at
        role = attempt.opening.role
        work.attempts.append(booking.summary(offer, role, "success", duration_s, total, Billed.YES, attempt.reason))
        return settled

    async def failed(self, attempt: Attempt, error: ProviderError | asyncio.CancelledError, ran: Ran | None) -> None:
        """Decides ``error.billed``. ``ran`` is what came back all the same; None if nothing did."""
        work, offer = attempt.work, attempt.offer
        work.running, work.booking = work.running - 1, work.booking + 1
        now = self._clock.monotonic()
        duration_s = now - attempt.started
        if not isinstance(error, ProviderError):
            message = work.over or "The router stopped before the answer came."
            error = ProviderError(ErrorKind.CANCELLED, message, billed=Billed.YES if ran is not None else None)
        error.billed = billed = booking.billed(error, offer.provider)
        # What the failed answer proved about its bill; nothing proved: the worst case.
        proof = error.evidence or (ran.result if ran is not None else None)
        usage, priced = None, offer.nothing_known()
        if proof is not None and billed is Billed.YES and booking.proves(proof):
            sizes = tuple(image.size for image in proof.images if image.size is not None)
            usage, priced = offer.consumed(proof, sizes)
        state = {Billed.NO: State.VOID, Billed.YES: State.SETTLED, Billed.MAYBE: State.UNKNOWN}[billed]
        outcome = error.consequence.outcome
        cost = self._agreements.cost(offer.provider.prices, offer.price, priced.charge, attempt.opening)
        nanos = 0 if billed is Billed.NO else cost.effective_nanos
        # The worst case is for the ledger: held against the waste budget, one such failure could use all of it up.
        proved = nanos if billed is Billed.NO or usage is not None else None
        told = booking.outcome(error, proved, unwanted=work.over == LEFT)
        self._selector.on_end(attempt.opening.attempt_id, told, now)
        work.ended_at = now
        role = attempt.opening.role
        work.attempts.append(
            booking.summary(offer, role, outcome, duration_s, nanos, billed, attempt.reason, error.message)
        )
        if error.kind is ErrorKind.RATE_LIMITED and error.retry_after_s is not None:
            work.retry_after_s = min(work.retry_after_s or error.retry_after_s, error.retry_after_s)
        await asyncio.shield(  # last, for a cancellation may end it here
            self._tasks.keep(
                self._settle(attempt, priced, cost, state, outcome, duration_s, ran=ran, usage=usage, error=error)
            )
        )
        work.booking -= 1

    async def _settle(
        self,
        attempt: Attempt,
        priced: Priced,
        cost: Cost,
        state: State,
        outcome: str,
        duration_s: float,
        *,
        ran: Ran | None,
        usage: Usage | None,
        error: ProviderError | None = None,
        delivered: bool = False,
    ) -> Settlement:
        opening = attempt.opening
        settlement = booking.settlement(
            opening.attempt_id,
            self._clock.now(),
            priced,
            cost,
            state,
            outcome,
            duration_s,
            ran=ran,
            usage=usage,
            queue_s=ran.result.queue_s if ran is not None else None,
            error=error,
            delivered=delivered,
        )
        known = state is not State.UNKNOWN
        self._budgets.settle(opening.attempt_id, settlement.amount_nanos, settlement.currency, known=known)
        if state is State.SETTLED and cost.draws:
            self._agreements.book(cost)
        # If it cannot be written: the open row is durable, and at the next start it is listed as unknown with its
        # estimate. The picture exists and is paid, so the client gets it; the metrics show the failed write.
        with contextlib.suppress(LedgerError):
            await self._ledger.settle(settlement)
        self._observer.attempt_finished(
            booking.finished(attempt.offer.model.slug, opening, settlement, attempt.offer, usage)
        )
        return settlement
