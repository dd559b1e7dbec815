"""One attempt, performed and metered: the adapter's flow, its pictures fetched, what it cost booked, and delivered.

Once an attempt is open the work no longer depends on the client staying: the provider may bill, so its row will be
written, whatever happens here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from router.accounting import Accounting
from router.blob import Blob
from router.clock import Clock
from router.delivery import Delivered, Delivery, merged
from router.errors import Billed, ErrorKind, ProviderError
from router.ledger import Settlement
from router.media import painted
from router.providers.base import Job, Partial
from router.records import record
from router.recovery import Recovery
from router.tasks import Tasks
from router.transport import Ran, Transport
from router.types import Accepted, ImageResult, PartialImage
from router.work import Attempt

log = logging.getLogger(__name__)

CANCEL_S = 10.0  # for telling a provider that a job is no longer wanted


@record
class Made:
    """The pictures of an attempt, booked and as the client gets them."""

    attempt: Attempt
    result: ImageResult
    settled: Settlement
    delivered: Delivered


class Attempts:
    """Runs attempts that are open in the ledger."""

    def __init__(
        self,
        *,
        accounting: Accounting,
        transport: Transport,
        delivery: Delivery,
        recovery: Recovery,
        clock: Clock,
        tasks: Tasks,
        refused_elsewhere: bool,
    ) -> None:
        self._accounting = accounting
        self._transport = transport
        self._delivery = delivery
        self._recovery = recovery
        self._clock = clock
        self._tasks = tasks
        self._refused_elsewhere = refused_elsewhere

    async def run(self, attempt: Attempt) -> Made:
        """Run the flow, meter, settle. Raises ProviderError with ``billed`` decided.

        It has a task of its own, which may be called off from its first step on, so that it is booked in any case. Of
        the attempts of one request, the first that has its pictures calls off the others, and so does a refusal.
        """
        work, offer = attempt.work, attempt.offer
        work.running += 1
        if work.over:  # while its row was being written; nothing has been sent
            failure = ProviderError(ErrorKind.CANCELLED, work.over, billed=Billed.NO)
            await self._accounting.failed(attempt, failure, None)
            raise failure
        task = asyncio.current_task()
        assert task is not None
        work.race.append(task)
        self._accounting.started(attempt)
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
            if others := work.call_off():
                await asyncio.wait(others)
        except ProviderError as error:
            await self._accounting.failed(attempt, error, ran)
            if error.kind is ErrorKind.REFUSED and not self._refused_elsewhere and (others := work.call_off()):
                await asyncio.wait(others)  # asking elsewhere must not evade a content policy, not even by chance
            if attempt.jobs and error.kind is ErrorKind.NO_ANSWER and error.billed is Billed.MAYBE:
                self._tasks.aside(self._stop(attempt))
            raise
        except asyncio.CancelledError as error:
            await self._accounting.failed(attempt, error, ran)
            if attempt.jobs and work.over and ran is None:
                self._tasks.aside(self._stop(attempt))
            raise
        except Exception as bug:  # ours, but the provider may bill: booked like an answer that never came
            log.exception("attempt failed unexpectedly", extra={"request_id": work.request_id})
            failure = ProviderError(ErrorKind.NO_ANSWER, "The provider's answer could not be handled.")
            await self._accounting.failed(attempt, failure, ran)
            raise failure from bug
        settled = await self._accounting.succeeded(attempt, ran, result)
        # Paid and booked: from here on a failure is ours, and never a reason to buy the picture again.
        delivered = await self._delivery.hand_over(
            result, attempt.request, offer.size, work.response_format, work.request_id
        )
        return Made(attempt, result, settled, delivered)

    async def _perform(self, attempt: Attempt) -> Ran:
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
            await self._accounting.job(attempt, job)
            await work.tell(Accepted())

        async def on_partial(partial: Partial) -> None:
            await work.tell(PartialImage(partial.image, partial.index))

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

    async def _stop(self, attempt: Attempt) -> None:
        """Tell the provider that jobs are no longer wanted, and settle by what it says became of them."""
        offer, opening = attempt.offer, attempt.opening
        for job in attempt.jobs:
            call = offer.adapter.cancel(job)
            if call is not None:
                with contextlib.suppress(ProviderError):
                    await self._transport.call(call, offer.provider, offer.auth, timeout_s=CANCEL_S)
        await self._recovery.attempt(opening, attempt.jobs)


def _seed(seed: int | None, index: int) -> int | None:
    """Calls that together make one request must not make the same picture twice."""
    return None if seed is None else seed + index
