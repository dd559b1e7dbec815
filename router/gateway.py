"""The use case: candidates, quotes, choice, attempt, answer.

``Gateway.run`` reads like the data flow in CONTRIBUTING.md. Which target is next, and what follows from a failure, is
decided here. What an attempt does is below, each in a room of its own: ``race`` watches it, ``attempt`` performs it,
``accounting`` books it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from router import booking, unserved
from router.accounting import Accounting
from router.attempt import Attempts, Made
from router.budgets import BUDGET, Budgets
from router.clock import Clock
from router.delivery import Delivery, response_format
from router.errors import CONSEQUENCES, Billed, ErrorKind, ProviderError, RequestError
from router.events import Observer
from router.ledger import Ledger, Role
from router.offers import Agreements, Offers, Order, emulated, stood_in
from router.race import Race
from router.records import changed
from router.recovery import Recovery
from router.routing import Decision, Infeasible, Outcome, RouteRequest, Selector
from router.tasks import Tasks, cancel
from router.transport import Transport
from router.types import Caller, Completed, GeneratedImage, ImageRequest, Model, Operation
from router.work import LEFT, Attempt, Emit, Work

UNSENT = CONSEQUENCES[ErrorKind.NOT_SENT].outcome


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
        self._observer = observer
        self._clock = clock
        self._timeout_s = timeout_s
        self._job_timeout_s = job_timeout_s
        self._budgets = budgets = budgets or Budgets()
        self._refused_elsewhere = refused_elsewhere
        self._on_disconnect = on_disconnect
        self._works: dict[str, Work] = {}  # by request id
        self._tasks = tasks = Tasks()
        agreements = agreements or Agreements()
        self._recovery = Recovery(
            offers=offers,
            transport=transport,
            ledger=ledger,
            delivery=delivery,
            agreements=agreements,
            budgets=budgets,
            clock=clock,
        )
        self._accounting = Accounting(
            selector=selector,
            ledger=ledger,
            budgets=budgets,
            agreements=agreements,
            observer=observer,
            clock=clock,
            tasks=tasks,
        )
        attempts = Attempts(
            accounting=self._accounting,
            transport=transport,
            delivery=delivery,
            recovery=self._recovery,
            clock=clock,
            tasks=tasks,
            refused_elsewhere=refused_elsewhere,
        )
        self._race = Race(attempts=attempts, selector=selector, observer=observer, clock=clock, tasks=tasks)

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
        work = Work(
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
        self._tasks.running.add(task)
        self._works[request_id] = work
        try:
            return self._completed(await self._attempts(work), routing)
        except asyncio.CancelledError:
            if work.over != LEFT or task.uncancel():  # the router stops
                raise
            raise unserved.given_up(work.attempts) from None
        finally:
            self._tasks.running.discard(task)
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
            cancel((work.task,))
        return True

    async def _attempts(self, work: Work) -> Made:
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
                attempt = await self._accounting.open(work, offer, decision, role, self._clock.new_id())
                return await self._race.run(attempt, self._second)
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

    def _choose(self, work: Work) -> Decision:
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

    def _decided(self, work: Work, decision: Decision, target: str) -> None:
        self._observer.decision(
            work.order.model.slug, target.partition("/")[0], decision.ask.preset, decision.mode, decision.excluded
        )

    async def _second(self, first: Attempt) -> Attempt | None:
        """An attempt elsewhere beside one that is probably stuck, opened; None if there is none to be had now."""
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
            return await self._accounting.open(
                work, work.order.offer(decision.target), decision, Role.RESCUE, attempt_id
            )
        except (RequestError, asyncio.CancelledError) as error:
            self._selector.on_end(attempt_id, Outcome.neutral(), self._clock.monotonic())
            if isinstance(error, RequestError):
                return None  # the ledger takes no row, so nothing is sent; the first attempt goes on
            raise

    # --- answers ---------------------------------------------------------------------------------------------

    def _completed(self, made: Made, routing: bool) -> Completed:
        attempt, result, settled, delivered = made.attempt, made.result, made.settled, made.delivered
        work, offer, request = attempt.work, attempt.offer, attempt.request
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
            routing=attempt.decision.record() if routing else None,
            input_pixels=sum(image.size.pixels for image in request.images if image.size is not None),
            output_pixels=sum(size.pixels for size in delivered.made),
            provider_s=work.provider_s,
        )

    def _failed(self, work: Work, error: ProviderError) -> RequestError:
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
        self._tasks.running.add(task)
        try:
            stretch = self._stretch(request)
            return await self._recovery.request(request_id, request, awaited=awaited, stretch=stretch)
        finally:
            self._tasks.running.discard(task)

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

    async def close(self, drain_s: float) -> None:
        """Let running requests finish, then stop the rest; each is booked as unknown before this returns."""
        await self._tasks.close(drain_s)
