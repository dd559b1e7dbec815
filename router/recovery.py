"""After a crash: what providers and ledger still know of requests that an earlier process left behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace

from pricing import Basis, Cost, ImageSize, Price, settle
from router import booking, unserved
from router.budgets import Budgets
from router.clock import Clock
from router.delivery import Delivered, Delivery, merged, response_format
from router.errors import Billed, ProviderError, RequestError
from router.ledger import AttemptRecord, Ledger, LedgerError, Opening, State
from router.offers import Agreements, Offers, auth_of, emulated, stood_in
from router.providers.base import Job
from router.records import record
from router.routing import unpack
from router.routing.catalog import completed
from router.transport import Transport
from router.types import Completed, GeneratedImage, ImageRequest, ImageResult, Warn


@record
class Resumed:
    """The pictures of an attempt that an earlier process left behind."""

    opening: Opening
    result: ImageResult
    took_s: float


class Recovery:
    """Asks providers about the jobs of earlier attempts, settles what they answer, and reads answers from the rows."""

    def __init__(
        self,
        *,
        offers: Offers,
        transport: Transport,
        ledger: Ledger,
        delivery: Delivery,
        agreements: Agreements,
        budgets: Budgets,
        clock: Clock,
    ) -> None:
        self._offers = offers
        self._transport = transport
        self._ledger = ledger
        self._delivery = delivery
        self._agreements = agreements
        self._budgets = budgets
        self._clock = clock

    async def request(
        self, request_id: str, request: ImageRequest, *, awaited: bool, stretch: float = 1.0
    ) -> Completed:
        """The pictures of a request that an earlier process left behind, if a provider still has them.

        Asks the providers about the jobs of its attempts and settles what they answer exactly; nothing is ever sent
        again. ``request`` says in which form the pictures are wanted; its prompt and inputs are not needed.
        ``awaited``: somebody can ask for the result, so the pictures count as delivered.
        ``stretch``: how much longer than usual an attempt may take.
        Raises RequestError; the code is ``outcome_unknown`` if it may have been billed and nobody can tell.
        """
        left = await self._ledger.request(request_id)
        attempts = left.attempts if left is not None else ()
        endings = await asyncio.gather(
            *(
                self.attempt(
                    attempt.opening,
                    [Job(job.job_id, job.state) for job in attempt.jobs],
                    awaited=awaited,
                    settled=attempt.state is State.SETTLED,
                    stretch=stretch,
                )
                for attempt in reversed(attempts)
                if _can_be_asked_for(attempt)
            )
        )
        after = await self._ledger.request(request_id)
        for ending in endings:
            if isinstance(ending, Resumed):
                return await self._recovered(request, ending, after.attempts if after is not None else ())
        failures = [ending for ending in endings if isinstance(ending, ProviderError)]
        raise unserved.unrecovered(after.attempts if after is not None else (), failures[0] if failures else None)

    async def attempt(
        self,
        opening: Opening,
        jobs: Sequence[Job],
        *,
        awaited: bool = False,
        settled: bool = False,
        stretch: float = 1.0,
    ) -> Resumed | ProviderError | None:
        """What became of an attempt's jobs, settled if it is not yet; None if that is not known."""
        began = self._clock.monotonic()
        known = self._offers.reach(opening.target)
        if known is None or len(jobs) < opening.expected["requests"]:  # some call's job was never noted
            return None
        target, provider, adapter = known
        price = Price.from_snapshot(opening.price) if opening.price else None
        cost: Cost | None = None
        failed: ProviderError | None = None
        result: ImageResult | None = None
        try:
            runs = await asyncio.gather(
                *(
                    self._transport.run(
                        adapter.resume(job, None, target),
                        provider,
                        auth_of(provider, adapter),
                        timeout_s=provider.timeout_s * stretch,
                        resumed=True,
                    )
                    for job in jobs
                )
            )
            result = await self._delivery.fetch(
                merged(tuple(run.result for run in runs)), provider, timeout_s=provider.timeout_s
            )
        except ProviderError as error:
            failed, billed = error, booking.billed(error, provider)
            result = (
                error.evidence if billed is Billed.YES and error.evidence and booking.proves(error.evidence) else None
            )
            if result is None and billed is not Billed.NO:
                return None
        duration_s = self._clock.monotonic() - began
        if result is None:
            settlement = booking.recovered(opening, self._clock.now(), duration_s, error=failed)
        else:
            usage = booking.recovered_usage(opening, result)
            priced = settle(price, usage, None)
            cost = self._agreements.cost(provider.prices, price, priced.charge, opening)
            settlement = booking.recovered(
                opening,
                self._clock.now(),
                duration_s,
                priced=priced,
                cost=cost,
                usage=usage,
                provider_request_id=result.provider_request_id,
                error=failed,
                delivered=awaited and failed is None,
            )
        ending = Resumed(opening, result, duration_s) if result is not None and failed is None else failed
        if settled:  # before the crash; only its pictures were missing
            return ending
        if cost is not None:
            self._agreements.book(cost)
        self._budgets.settle(opening.attempt_id, settlement.amount_nanos, settlement.currency, known=True)
        with contextlib.suppress(LedgerError):  # somebody else settled it meanwhile: then it is settled
            await self._ledger.settle(settlement)
        return ending

    async def _recovered(self, request: ImageRequest, resumed: Resumed, attempts: Sequence[AttemptRecord]) -> Completed:
        """The answer as it would have been, from the ledger's rows."""
        opening, form = resumed.opening, response_format(request)
        request, told = self._as_ordered(request, opening)
        ordered = ImageSize.parse(size) if (size := opening.expected.get("size")) else None
        delivered = await self._delivery.hand_over(resumed.result, request, ordered, form, opening.request_id)
        warned = replace(delivered, warnings=(*told, *delivered.warnings, _RESUMED))
        return self._from_rows(request, opening, attempts, warned, form, resumed.result, resumed.took_s)

    async def recorded(self, request_id: str, key: str, images: Sequence[GeneratedImage]) -> Completed | None:
        """The answer that a request of this client key had, from the ledger's rows; None if there was none.

        ``images``: its pictures, as they are kept.
        """
        found = await self._ledger.request(request_id)
        answered = found.delivered if found is not None else None
        if found is None or answered is None or answered.opening.key != key or len(images) < answered.opening.images:
            return None  # no such answer, or not all of it is left
        request, told = self._as_ordered(booking.requested(answered.opening), answered.opening)
        kept = Delivered(tuple(images), (), images[0].format or "png", told)
        return self._from_rows(request, answered.opening, found.attempts, kept, "url", ImageResult(()), 0.0)

    def _as_ordered(self, request: ImageRequest, opening: Opening) -> tuple[ImageRequest, tuple[Warn, ...]]:
        """The request as its model completed it, and what its client was told of that."""
        catalog, day = self._offers.catalog, opening.opened_at.date()
        wanted, told = opening.model, tuple[Warn, ...]()
        with contextlib.suppress(RequestError):  # the catalogue may have changed meanwhile
            named, _, told = catalog.resolve(opening.requested_model, day)
            wanted = named.slug
        calls = opening.expected["requests"]
        if (model := catalog.models.get(opening.model)) is not None:
            filled, warnings = catalog.complete(request.shape, model)
            request = completed(request, filled)
            prompted = opening.expected.get("prompt_characters", 0) != len(request.prompt) * calls
            told += () if prompted else warnings  # the prompt is not known, but whether it was the catalogue's
        return request, (*told, *stood_in(wanted, opening.model), *emulated(opening.images, calls))

    def _from_rows(
        self,
        request: ImageRequest,
        opening: Opening,
        attempts: Sequence[AttemptRecord],
        delivered: Delivered,
        form: str,
        result: ImageResult,
        took_s: float,
    ) -> Completed:
        ended = next(a.settlement for a in attempts if a.opening.attempt_id == opening.attempt_id)
        known = self._offers.reach(opening.target)
        sizes = {image.size for image in delivered.images}
        return Completed(
            request_id=opening.request_id,
            created=int((ended.recorded_at if ended is not None else self._clock.now()).timestamp()),
            operation=request.operation,
            model=request.model,
            executed_model=opening.target,
            provider=opening.provider,
            provider_name=known[1].title if known is not None else opening.provider,
            images=delivered.images,
            response_format=form,
            cost_nanos=sum(attempt.cost_nanos for attempt in attempts if attempt.state is State.SETTLED),
            currency=ended.currency if ended is not None else opening.currency,
            items=ended.items if ended is not None else (),
            attempts=tuple(booking.recorded(attempt) for attempt in attempts),
            reason=unpack(opening.decision).reason,
            basis=ended.basis if ended is not None else Basis.MEASURED,
            output_format=delivered.format,
            size=sizes.pop() if len(sizes) == 1 else None,
            quality=result.quality or request.quality,
            background=result.background,
            seed=result.seed,
            usage=result.usage,
            warnings=delivered.warnings,
            output_pixels=sum(size.pixels for size in delivered.made),
            provider_s=took_s,
        )


_RESUMED = Warn("resumed", "The router was restarted meanwhile; the pictures are those of the job at the provider.")


def _can_be_asked_for(attempt: AttemptRecord) -> bool:
    """Whether the provider may know more than we do: of an unknown outcome, or of pictures that never got further."""
    if not attempt.jobs:
        return False
    ended = attempt.settlement
    paid = attempt.state is State.SETTLED and ended is not None and ended.outcome == "success"
    return paid or attempt.state in (State.OPEN, State.UNKNOWN)
