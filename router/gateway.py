"""The whole use case, top to bottom: candidates, quotes, choice, attempt, meter, book, deliver.

With ``recovery``, which goes on after a crash, this is the only module that sees routing, providers, pricing and
ledger. ``Gateway.run`` reads like the data flow in CONTRIBUTING.md. Once an attempt is open the work no longer depends
on the client staying: the provider may bill, so its row will be written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pricing import Cost, Usage
from pricing import Settlement as Priced
from router import booking, unserved
from router.blob import Blob
from router.budgets import BUDGET, Budgets
from router.clock import Clock
from router.delivery import Delivered, Delivery, merged, response_format
from router.errors import CONSEQUENCES, SERVER, Billed, ErrorKind, ProviderError, RequestError
from router.events import Observer
from router.ledger import Ledger, LedgerError, Opening, Role, Settlement, State
from router.media import painted
from router.offers import Agreements, Offer, Offers, Order, emulated, stood_in
from router.providers.base import Job, Partial
from router.records import changed, record
from router.recovery import Recovery
from router.routing import Decision, Infeasible, Outcome, RouteRequest, Selector
from router.transport import Ran, Transport
from router.types import (
    Accepted,
    AttemptSummary,
    Caller,
    Completed,
    GeneratedImage,
    ImageRequest,
    ImageResult,
    Model,
    Operation,
    PartialImage,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

UNSENT = CONSEQUENCES[ErrorKind.NOT_SENT].outcome
WATCH_S = 1.0  # so often running attempts are looked at
CANCEL_S = 10.0  # for telling a provider that a job is no longer wanted
CALLED_OFF = "The answer of another target was final, so this attempt was called off."
LEFT = "The client left, and wanted no work to go on without it."

Emit = Callable[[Accepted | PartialImage], Awaitable[None]]


@dataclass(slots=True)
class _Work:
    """One request on its way: what is fixed, and what the attempts leave behind."""

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


@record
class _Attempt:
    """One try of one target, open in the ledger."""

    work: _Work
    offer: Offer
    request: ImageRequest  # as the offer's model completes it
    decision: Decision
    opening: Opening
    started: float
    reason: str  # why this target, in one sentence
    jobs: list[Job] = field(default_factory=list)
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    alarms: list[asyncio.Future[None]] = field(default_factory=list)  # when a second target is to be asked

    def wake(self, _: asyncio.Future[Any]) -> None:
        """It has ended, or a second target is to be asked: who waits for it must look."""
        if not self.turn.done():
            self.turn.set_result(None)


class Gateway:
    """Runs requests and quotes them. One per process."""

    def __init__(
        self,
        *,
        offers: Offers,
        selector: Selector,
        transport: Transport,
        ledger: Ledger,
        delivery: Delivery,
        observer: Observer,
        clock: Clock,
        timeout_s: float,
        job_timeout_s: float = 0.0,
        agreements: Agreements | None = None,
        refused_elsewhere: bool = False,
        budgets: Budgets | None = None,
        on_disconnect: str = "finish",
    ) -> None:
        self._offers = offers
        self._selector = selector
        self._transport = transport
        self._ledger = ledger
        self._delivery = delivery
        self._observer = observer
        self._clock = clock
        self._timeout_s = timeout_s
        self._job_timeout_s = job_timeout_s
        self._agreements = agreements or Agreements()
        self._budgets = budgets or Budgets()
        self._recovery = Recovery(
            offers=offers,
            transport=transport,
            ledger=ledger,
            delivery=delivery,
            agreements=self._agreements,
            budgets=self._budgets,
            clock=clock,
        )
        self._refused_elsewhere = refused_elsewhere
        self._on_disconnect = on_disconnect
        self._works: dict[str, _Work] = {}  # by request id
        self._waiting: dict[str, _Attempt] = {}  # by attempt id: those that may yet want a second target
        self._watch: asyncio.TimerHandle | None = None  # runs while attempts do
        self._running: set[asyncio.Task[Any]] = set()
        self._legs: set[asyncio.Task[Any]] = set()  # attempts; stopped by who waits for them, never before they began
        self._beside: set[asyncio.Task[Any]] = set()  # nobody waits for these, and a restart would do them again

    # --- the catalogue, for the API --------------------------------------------------------------------------

    def default_model(self, operation: Operation) -> str | None:
        return self._offers.catalog.defaults.get(operation)

    def models(self, caller: Caller) -> list[dict[str, Any]]:
        """OpenAI model objects of everything this caller may use, aliases included."""
        return self._offers.catalog.listed(self._clock.now().date(), caller.models)

    def model(self, name: str, caller: Caller) -> dict[str, Any] | None:
        return next((model for model in self.models(caller) if model["id"] == name), None)

    def forwards_undecodable(self, model: str) -> bool:
        """Whether source pictures in formats that we do not read go on to this model's providers."""
        try:
            return self._offers.catalog.resolve(model, self._clock.now().date())[0].undecodable_inputs == "forward"
        except RequestError:
            return False  # the request will be told that there is no such model

    def _order(self, request: ImageRequest, caller: Caller) -> Order:
        return self._offers.order(request, self._clock.now(), caller, budgeted=self._budgets.limit(caller))

    def _budget_s(self, request: ImageRequest, model: Model) -> float:
        """Seconds for all attempts of a request: a job, which nobody waits for, has longer, by its model."""
        if not request.later:
            return self._timeout_s
        return max(model.job_timeout_s or self._job_timeout_s, self._timeout_s)

    # --- one request -----------------------------------------------------------------------------------------

    async def run(
        self,
        request: ImageRequest,
        caller: Caller,
        *,
        request_id: str,
        emit: Emit | None = None,
        routing: bool = False,
    ) -> Completed:
        """Make the pictures and book them. Raises RequestError; whatever may have been billed is in the ledger then.

        Runs in the caller's task, which must be one of its own: a client that leaves must not cancel the work, for the
        provider bills all the same. If it is cancelled, the attempt is booked as unknown.
        """
        order = self._order(request, caller)
        started = self._clock.monotonic()
        budget_s = self._budget_s(request, order.model)
        wait_s = request.deadline_s
        hurried = wait_s is not None and wait_s < budget_s
        timeout_s = wait_s if wait_s is not None and hurried else budget_s
        work = _Work(
            request_id=request_id,
            request=request,
            order=order,
            caller=caller,
            route=order.routed(request, timeout_s),
            started=started,
            deadline=started + timeout_s,
            emit=emit,
            response_format=response_format(request),
            hurried=hurried,
            stretch=budget_s / self._timeout_s,
        )
        task = work.task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self._works[request_id] = work
        try:
            return await self._attempts(work, routing)
        except asyncio.CancelledError:
            if work.over != LEFT or task.uncancel():  # the router stops
                raise
            raise unserved.given_up(work.attempts) from None
        finally:
            self._running.discard(task)
            self._works.pop(request_id, None)

    def abandon(self, request_id: str) -> bool:
        """Nobody waits for this request any more. Whether it ends now.

        What is at no provider is given up, and costs nothing. What a provider works on goes on, for it is paid all the
        same, unless ``on_disconnect`` of the request, its key, its model or the installation says ``cancel``: then it
        is stopped as the loser of a race is, told to the provider, and booked at what it may cost.
        """
        work = self._works.get(request_id)
        if work is None:
            return False
        wish = work.route.preferences.on_disconnect or self._on_disconnect
        if wish != "cancel" and (work.running or work.booking):
            return False
        work.over = LEFT
        if work.task is not None and not work.booking:  # else it looks by itself, once that is written
            _cancel((work.task,))
        return True

    async def _attempts(self, work: _Work, routing: bool) -> Completed:
        """Targets in turn, until pictures, a failure that must not be repeated, or the deadline."""
        role = Role.FIRST
        decision: Decision | None = None
        while True:
            if decision is None:
                decision = self._choose(work)
            if decision.target is None:
                raise unserved.exhausted(work.order.model.slug, decision)
            offer = work.order.offer(decision.target)
            try:
                attempt = await self._open(work, offer, decision, role, self._clock.new_id())
                return await self._run(attempt, routing)
            except ProviderError as error:
                if work.over == LEFT:
                    raise unserved.given_up(work.attempts) from error
                offer = work.order.offer(work.attempts[-1].target)
                following = self._selector.after(
                    self._affordable(work.caller, work.route),
                    error.kind,
                    error.billed or Billed.MAYBE,
                    len(work.attempts),
                    self._clock.monotonic() - work.started,
                    self._clock.monotonic(),
                    error.retry_after_s,
                    target=offer.target.key,
                    tried=work.tried,
                    unsent=sum(attempt.outcome == UNSENT for attempt in work.attempts),
                    refused_elsewhere=self._refused_elsewhere,
                )
                if following.action == "stop":
                    raise self._failed(work, error) from error
                if following.delay_s:
                    await self._clock.sleep(following.delay_s)
                if following.action == "retry":
                    role = Role.RETRY
                    self._observer.retry(offer.target.provider, error.kind.value)
                    continue
                role = Role.FAILOVER
                if offer.target.key not in work.tried:
                    work.tried.append(offer.target.key)
                try:
                    decision = self._choose(work)
                except RequestError:  # what is left does not meet the constraints: say what happened, not that
                    raise self._failed(work, error) from error
                if decision.target is None:
                    raise self._failed(work, error) from error
                self._observer.failover(
                    offer.model.slug,
                    offer.target.provider,
                    decision.target.partition("/")[0],
                    error.kind.value,
                )

    def _choose(self, work: _Work) -> Decision:
        now = self._clock.monotonic()
        decision = self._within_budget(work.caller, work.route, now, tuple(work.tried), now - work.started)
        if decision.target is not None:
            self._decided(work, decision, decision.target)
        return decision

    def _within_budget(
        self, caller: Caller, request: RouteRequest, now: float, tried: tuple[str, ...] = (), elapsed_s: float = 0.0
    ) -> Decision:
        """A choice among what the caller's budgets have money for. RequestError if they have none for any."""
        within = self._affordable(caller, request)
        try:
            decision = self._selector.choose(within, now, tried, elapsed_s)
        except Infeasible as error:
            if within is not request:
                raise self._budgets.refusal(caller, self._clock.now(), first=not tried) from error
            raise unserved.infeasible(error) from error
        if decision.target is None and within is not request and decision.retry_after_s is None:
            raise self._budgets.refusal(caller, self._clock.now(), first=not tried)
        return decision

    def _affordable(self, caller: Caller, request: RouteRequest) -> RouteRequest:
        """The request without the targets that may cost more than the caller's budgets have left; itself if there are
        none of these."""
        room = self._budgets.room(caller, self._clock.now()) if self._budgets.accounts else None
        if room is None or not [c for c in request.candidates if c.excluded is None and c.price_high_nanos > room]:
            return request
        candidates = tuple(
            changed(c, excluded=c.excluded or BUDGET) if c.price_high_nanos > room else c for c in request.candidates
        )
        return changed(request, candidates=candidates)

    def _decided(self, work: _Work, decision: Decision, target: str) -> None:
        self._observer.decision(
            work.order.model.slug, target.partition("/")[0], decision.ask.preset, decision.mode, decision.excluded
        )

    # --- one attempt -----------------------------------------------------------------------------------------

    async def _open(self, work: _Work, offer: Offer, decision: Decision, role: Role, attempt_id: str) -> _Attempt:
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
        return _Attempt(work, offer, request, decision, opening, self._clock.monotonic(), decision.reason)

    async def _finish(self, attempt: _Attempt, routing: bool) -> Completed:
        """Run the flow, meter, settle. Raises ProviderError with ``billed`` decided."""
        work, offer, opening = attempt.work, attempt.offer, attempt.opening
        work.running += 1
        self._selector.on_start(offer.target.key, work.route, attempt.started, opening.attempt_id)
        self._observer.attempt_started(offer.target.provider)
        ran: Ran | None = None
        try:
            ran = await self._perform(attempt)
            left_s = max(5.0, work.deadline - self._clock.monotonic())  # it is paid: do not drop it for a second
            result = await self._delivery.fetch(ran.result, offer.provider, timeout_s=left_s)
            made, asked = len(result.images), attempt.request.n
            if made < asked:
                ran = replace(ran, result=result)  # the pictures that did come, measured
                raise ProviderError(
                    ErrorKind.UNUSABLE, f"The provider made {made} of {asked} pictures.", billed=Billed.YES
                )
            if others := _call_off(work):
                await asyncio.wait(others)
        except ProviderError as error:
            await self._book_failure(attempt, error, ran)
            if error.kind is ErrorKind.REFUSED and not self._refused_elsewhere and (others := _call_off(work)):
                await asyncio.wait(others)  # asking elsewhere must not evade a content policy, not even by chance
            if attempt.jobs and error.kind is ErrorKind.NO_ANSWER and error.billed is Billed.MAYBE:
                self._aside(self._stop(attempt))
            raise
        except asyncio.CancelledError as error:
            await self._book_failure(attempt, error, ran)
            if attempt.jobs and work.over and ran is None:
                self._aside(self._stop(attempt))
            raise
        except Exception as bug:  # ours, but the provider may bill: booked like an answer that never came
            log.exception("attempt failed unexpectedly", extra={"request_id": work.request_id})
            failure = ProviderError(ErrorKind.NO_ANSWER, "The provider's answer could not be handled.")
            await self._book_failure(attempt, failure, ran)
            raise failure from bug
        return await self._book_success(attempt, ran, result, routing)

    async def _perform(self, attempt: _Attempt) -> Ran:
        """The adapter's flow; several at once when the target makes fewer pictures per call than were asked."""
        work, offer = attempt.work, attempt.offer
        request, most = attempt.request, offer.target.max_images
        if offer.size != request.size:
            request = replace(request, size=offer.size)  # by the size policy
        if request.mask is not None and offer.target.mask_rule != "alpha" and request.mask.format is not None:
            white = offer.target.mask_rule == "white"
            drawn = await asyncio.to_thread(painted, bytes(request.mask.data), edit_white=white)
            request = replace(request, mask=replace(request.mask, data=Blob(drawn)))
        timeout_s = min(offer.provider.timeout_s * work.stretch, work.deadline - self._clock.monotonic())
        counts = [most] * (request.n // most) + ([request.n % most] if request.n % most else [])

        async def on_job(job: Job) -> None:
            attempt.jobs.append(job)
            self._selector.on_progress(attempt.opening.attempt_id, "submitted", self._clock.monotonic())
            await self._ledger.job(attempt.opening.attempt_id, job.id, job.state)
            await self._tell(work, Accepted())

        async def on_partial(partial: Partial) -> None:
            await self._tell(work, PartialImage(partial.image, partial.index))

        def run(count: int, index: int) -> Coroutine[Any, Any, Ran]:
            part = request if len(counts) == 1 else replace(request, n=count, seed=_seed(request.seed, index))
            return self._transport.run(
                offer.adapter.run(part, offer.target),
                offer.provider,
                offer.auth,
                timeout_s=timeout_s,
                on_job=on_job,
                on_partial=on_partial,
            )

        if len(counts) == 1:
            return await run(request.n, 0)
        outcomes = await asyncio.gather(
            *(run(count, sum(counts[:index])) for index, count in enumerate(counts)), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            # Nothing is half-delivered; what the others made is paid and stays on the attempt's row.
            worst = next((f for f in failures if not isinstance(f, ProviderError)), failures[0])
            if isinstance(worst, ProviderError) and len(failures) < len(outcomes):
                worst.billed = Billed.YES
            raise worst
        runs = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        return replace(
            runs[0],
            result=merged(tuple(each.result for each in runs)),
            latency_s=max(each.latency_s for each in runs),
        )

    async def _tell(self, work: _Work, event: Accepted | PartialImage) -> None:
        """Show a streaming client what happens. A client that is gone is told no more; the work goes on."""
        if work.emit is None:
            return
        try:
            if not work.accepted:
                work.accepted = True
                await work.emit(Accepted())
            if isinstance(event, PartialImage) and len(work.race) < 2:  # of two attempts, nobody knows which will win
                work.shown = True
                await work.emit(event)
        except Exception:
            work.emit = None

    # --- a second attempt beside one that is probably stuck --------------------------------------------------

    async def _run(self, attempt: _Attempt, routing: bool) -> Completed:
        """The attempt; and a second one elsewhere, if it turns out that this one is probably stuck.

        Raises ProviderError when all have failed, or when one was refused for its content, which ends the other too.
        """
        work, attempt_id = attempt.work, attempt.opening.attempt_id
        work.raced_at = attempt.started
        first = self._start(attempt, routing)
        self._waiting[attempt_id] = attempt
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(WATCH_S, self._look)
        if work.hurried or attempt.decision.mode == "probe" or self._selector.settings.rescue:
            self._set_alarm(attempt)
        try:
            await attempt.turn
            if not first.done() and (second := await self._second(attempt)) is not None:
                return await self._raced(attempt, first, second, routing)
            return await first
        except ProviderError:
            work.provider_s += work.ended_at - work.raced_at
            raise
        except asyncio.CancelledError:
            _cancel((first,))
            await asyncio.wait((first,))  # until it is booked
            raise
        finally:
            del self._waiting[attempt_id]
            for alarm in attempt.alarms:
                alarm.cancel()
            work.race.clear()

    def _look(self) -> None:
        """While attempts run: whether a target has stopped answering."""
        self._watch = asyncio.get_running_loop().call_later(WATCH_S, self._look) if self._waiting else None
        for attempt_id in self._selector.stuck(self._clock.monotonic()):
            if (attempt := self._waiting.get(attempt_id)) is not None:
                self._set_alarm(attempt)

    def _set_alarm(self, attempt: _Attempt) -> None:
        """Wake it when a second target is worth its money, if it will be."""
        work, now = attempt.work, self._clock.monotonic()
        after_s = self._selector.rescue_after(work.route, attempt.decision, now, wanted=work.hurried)
        if after_s is None:
            return
        alarm = asyncio.ensure_future(self._clock.sleep(max(attempt.started + after_s - now, 0.0)))
        alarm.add_done_callback(attempt.wake)
        attempt.alarms.append(alarm)

    async def _raced(
        self, attempt: _Attempt, first: asyncio.Task[Completed], second: _Attempt, routing: bool
    ) -> Completed:
        """The first success of two attempts. The other is stopped and booked."""
        legs = [first, self._start(second, routing)]
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
            _cancel(legs)
            self._observer.rescue(
                second.offer.model.slug, attempt.offer.target.provider, second.offer.target.provider, won
            )

    async def _second(self, first: _Attempt) -> _Attempt | None:
        """The rescue, opened; None if there is none to be had now."""
        work, target = first.work, first.offer.target.key
        if work.shown or work.opened >= self._selector.settings.attempts:
            return None
        now, attempt_id = self._clock.monotonic(), self._clock.new_id()
        tried = (*work.tried, target)
        affordable = self._affordable(work.caller, work.route)
        decision = self._selector.rescue(affordable, first.decision, now, tried, now - work.started, attempt_id)
        if decision is None or decision.target is None:
            return None
        work.tried = [*tried, decision.target]
        self._decided(work, decision, decision.target)
        try:
            return await self._open(work, work.order.offer(decision.target), decision, Role.RESCUE, attempt_id)
        except (RequestError, asyncio.CancelledError) as error:
            self._selector.on_end(attempt_id, Outcome.neutral(), self._clock.monotonic())
            if isinstance(error, RequestError):
                return None  # the ledger takes no row, so nothing is sent; the first attempt goes on
            raise

    def _start(self, attempt: _Attempt, routing: bool) -> asyncio.Task[Completed]:
        def ended(leg: asyncio.Task[Completed]) -> None:
            self._legs.discard(leg)
            leg.cancelled() or leg.exception()  # nobody need fetch how a loser ended
            attempt.wake(leg)

        task = asyncio.ensure_future(self._leg(attempt, routing))
        self._legs.add(task)
        task.add_done_callback(ended)
        return task

    async def _leg(self, attempt: _Attempt, routing: bool) -> Completed:
        """One attempt, in a task of its own. It can be called off from its first step on, so that it is booked."""
        work = attempt.work
        if work.over:  # while its row was being written; nothing has been sent
            work.running += 1
            failure = ProviderError(ErrorKind.CANCELLED, work.over, billed=Billed.NO)
            await self._book_failure(attempt, failure, None)
            raise failure
        task = asyncio.current_task()
        assert task is not None
        work.race.append(task)
        return await self._finish(attempt, routing)

    async def _stop(self, attempt: _Attempt) -> None:
        """Tell the provider that jobs are no longer wanted, and settle by what it says became of them."""
        offer, opening = attempt.offer, attempt.opening
        for job in attempt.jobs:
            call = offer.adapter.cancel(job)
            if call is not None:
                with contextlib.suppress(ProviderError):
                    await self._transport.call(call, offer.provider, offer.auth, timeout_s=CANCEL_S)
        await self._recovery.attempt(opening, attempt.jobs)

    # --- booking ---------------------------------------------------------------------------------------------

    async def _book_success(self, attempt: _Attempt, ran: Ran, result: ImageResult, routing: bool) -> Completed:
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
        # Paid and booked: from here on a failure is ours, and never a reason to buy the picture again.
        delivered = await self._delivery.hand_over(
            result, attempt.request, offer.size, work.response_format, work.request_id
        )
        return self._completed(attempt, settled, result, delivered, routing)

    async def _book_failure(
        self, attempt: _Attempt, error: ProviderError | asyncio.CancelledError, ran: Ran | None
    ) -> None:
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
            self._keep(
                self._settle(attempt, priced, cost, state, outcome, duration_s, ran=ran, usage=usage, error=error)
            )
        )
        work.booking -= 1

    async def _settle(
        self,
        attempt: _Attempt,
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

    # --- answers ---------------------------------------------------------------------------------------------

    def _completed(
        self, attempt: _Attempt, settled: Settlement, result: ImageResult, delivered: Delivered, routing: bool
    ) -> Completed:
        work, offer, decision = attempt.work, attempt.offer, attempt.decision
        request = attempt.request
        sizes = {image.size for image in delivered.images}
        return Completed(
            request_id=work.request_id,
            created=int(self._clock.now().timestamp()),
            operation=request.operation,
            model=request.model,
            executed_model=offer.target.key,
            provider=offer.target.provider,
            provider_name=offer.provider.title,
            images=delivered.images,
            response_format=work.response_format,
            cost_nanos=sum(attempt.cost_nanos for attempt in work.attempts if attempt.billed == Billed.YES),
            currency=settled.currency,
            items=settled.items,
            attempts=tuple(work.attempts),
            reason=attempt.reason,
            basis=settled.basis,
            output_format=delivered.format,
            size=sizes.pop() if len(sizes) == 1 else None,
            quality=result.quality or request.quality,
            background=result.background,
            seed=result.seed,
            usage=result.usage,
            warnings=(
                *work.order.warnings,
                *stood_in(work.order.model.slug, offer.model.slug),
                *emulated(request.n, offer.expected.requests),
                *delivered.warnings,
            ),
            routing=decision.record() if routing else None,
            input_pixels=sum(image.size.pixels for image in request.images if image.size is not None),
            output_pixels=sum(size.pixels for size in delivered.made),
            provider_s=work.provider_s,
        )

    def _failed(self, work: _Work, error: ProviderError) -> RequestError:
        late = self._clock.monotonic() >= work.deadline
        model = work.order.model.slug
        return unserved.failed(model, work.attempts, error, late=late, retry_after_s=work.retry_after_s)

    # --- a dry run -------------------------------------------------------------------------------------------

    def quote(self, request: ImageRequest, caller: Caller) -> dict[str, Any]:
        """What the request would cost, at every target, and which would be chosen. Runs and charges nothing."""
        order = self._order(request, caller)
        budget_s = self._budget_s(request, order.model)
        wait_s = min(request.deadline_s or budget_s, budget_s)
        try:
            decision = self._selector.choose(order.routed(request, wait_s), self._clock.monotonic(), ())
        except Infeasible as error:
            raise unserved.infeasible(error) from error
        chosen = order.offer(decision.target) if decision.target else order.offers[0]
        return booking.dry_run(order, chosen, decision)

    def check(self, request: ImageRequest, caller: Caller) -> None:
        """RequestError if the request would be refused now."""
        order = self._order(request, caller)
        budget_s = self._budget_s(request, order.model)
        wait_s = min(request.deadline_s or budget_s, budget_s)
        self._within_budget(caller, order.routed(request, wait_s), self._clock.monotonic())

    # --- after a crash ---------------------------------------------------------------------------------------

    async def resume(self, request_id: str, request: ImageRequest, *, awaited: bool) -> Completed:
        """What ``Recovery.request`` finds of it, as work that is waited for at the end. Raises RequestError."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            stretch = self._stretch(request)
            return await self._recovery.request(request_id, request, awaited=awaited, stretch=stretch)
        finally:
            self._running.discard(task)

    def _stretch(self, request: ImageRequest) -> float:
        """How much longer than usual a job's attempts may take, also if its model is no longer there."""
        try:
            model = self._offers.catalog.resolve(request.model, self._clock.now().date())[0]
        except RequestError:
            return 1.0
        return self._budget_s(request, model) / self._timeout_s

    async def recorded(self, request_id: str, key: str, images: Sequence[GeneratedImage]) -> Completed | None:
        """The answer that a request of this client key had, from the ledger's rows; None if there was none.

        ``images``: its pictures, as they are kept.
        """
        return await self._recovery.recorded(request_id, key, images)

    # --- life ------------------------------------------------------------------------------------------------

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that outlives its caller's cancellation and is waited for at the end."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _aside(self, work: Coroutine[Any, Any, Any]) -> None:
        """A task that is worth doing, but not worth waiting for when the router stops."""
        task = asyncio.ensure_future(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def close(self, drain_s: float) -> None:
        """Let running requests finish, then stop the rest; each is booked as unknown before this returns."""
        if self._running:
            await asyncio.wait(self._running, timeout=drain_s)
        for task in self._beside:
            task.cancel()
        if self._beside:
            await asyncio.wait(self._beside, timeout=5.0)
        while self._running or self._legs:
            for task in tuple(self._running):
                task.cancel()
            await asyncio.wait(self._running | self._legs, timeout=5.0)


def _call_off(work: _Work) -> list[asyncio.Task[Any]]:
    """End the race: what else still runs or is about to is stopped. It is booked when these tasks are done."""
    work.over = work.over or CALLED_OFF
    current = asyncio.current_task()
    others = [task for task in work.race if task is not current and not task.done()]
    _cancel(others)
    return others


def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Once each: a second time would end the booking that the first has begun."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()


def _seed(seed: int | None, index: int) -> int | None:
    """Calls that together make one request must not make the same picture twice."""
    return None if seed is None else seed + index
