"""What happened, as the ledger, the metrics and the client are told it: pure functions from values to records."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any, Protocol

from pricing import Basis, Cost, ImageSize, Usage
from pricing import Settlement as Priced
from router.errors import CONSEQUENCES, Billed, ErrorKind, ProviderError
from router.events import AttemptFinished
from router.ledger import AttemptRecord, Opening, Role, Settlement, State, usage_as_dict
from router.offers import Offer, Order
from router.routing import Decision, Outcome, Scored, pack, unpack
from router.types import AttemptSummary, Caller, ImageRequest, ImageResult, Operation, Provider


class Timings(Protocol):
    """What the transport measured of a finished flow."""

    @property
    def ttfb_s(self) -> float | None: ...
    @property
    def provider_request_id(self) -> str | None: ...


def opening(
    attempt_id: str,
    at: datetime,
    request_id: str,
    request: ImageRequest,
    caller: Caller,
    offer: Offer,
    decision: Decision,
    role: Role,
    *,
    attempt_no: int,
) -> Opening:
    """The row that must be durable before the call leaves."""
    quote, price = offer.quote, offer.price
    expected = offer.expecting
    if request.prompt:
        expected = {**expected, "prompt_characters": len(request.prompt) * offer.expected.requests}
    return Opening(
        attempt_id=attempt_id,
        request_id=request_id,
        attempt_no=attempt_no,
        role=role,
        opened_at=at,
        key=caller.key,
        team=caller.team,
        project=caller.project,
        tags=caller.tags,
        user=request.user,
        retry_count=caller.retry_count,
        operation=str(request.operation),
        model=offer.model.slug,
        requested_model=request.model,
        target=offer.target.key,
        provider=offer.target.provider,
        provider_model=offer.target.endpoints[request.operation],
        images=request.n,
        estimate_nanos=quote.high.total_nanos if quote else 0,
        currency=quote.high.currency if quote else "USD",
        price_id=price.id if price else None,
        price=price.snapshot() if price else {},
        expected=expected,
        request_digest=digest(request),
        decision=pack(decision),
    )


def settlement(
    attempt_id: str,
    at: datetime,
    priced: Priced,
    cost: Cost,
    state: State,
    outcome: str,
    duration_s: float,
    *,
    ran: Timings | None = None,
    usage: Usage | None = None,
    queue_s: float | None = None,
    error: ProviderError | None = None,
    delivered: bool = False,
) -> Settlement:
    """How the attempt ended. A void attempt costs nothing, whatever was quoted; both costs are kept, list and ours."""
    void = state is State.VOID
    charge = cost.contracted
    items = () if void else tuple([item.as_dict() for item in cost.items])
    return Settlement(
        attempt_id=attempt_id,
        state=state,
        recorded_at=at,
        outcome=outcome,
        amount_nanos=0 if void else cost.effective_nanos,
        list_nanos=0 if void else cost.list.total_nanos,
        currency=charge.currency,
        basis=str(charge.basis),
        items=items,
        usage=usage_as_dict(usage) if usage is not None else {},
        computed_nanos=priced.computed.total_nanos if priced.computed else None,
        reported_nanos=priced.reported_nanos,
        error_kind=error.kind.value if error else None,
        error=error.message[:500] if error else None,
        provider_request_id=(ran and ran.provider_request_id) or (error and error.provider_request_id) or None,
        delivered=delivered,
        latency_ms=round(duration_s * 1000),
        ttfb_ms=round(ran.ttfb_s * 1000) if ran is not None and ran.ttfb_s is not None else None,
        queue_ms=round(queue_s * 1000) if queue_s is not None else None,
    )


def finished(
    model: str, opening: Opening, settlement: Settlement, offer: Offer, usage: Usage | None
) -> AttemptFinished:
    """The same facts for metrics."""
    return AttemptFinished(
        provider=opening.provider,
        model=model,
        operation=opening.operation,
        outcome=settlement.outcome,
        duration_s=(settlement.latency_ms or 0) / 1000,
        ttfb_s=settlement.ttfb_ms / 1000 if settlement.ttfb_ms is not None else None,
        queue_s=settlement.queue_ms / 1000 if settlement.queue_ms is not None else None,
        images=len(usage.outputs) if usage else 0,
        delivered=settlement.delivered,
        amount_nanos=settlement.amount_nanos,
        currency=settlement.currency,
        basis=settlement.basis,
        items=settlement.items,
        tokens=usage.tokens if usage else {},
        input_pixels=sum(size.pixels for size in usage.inputs if size is not None) if usage else 0,
        output_pixels=sum(size.pixels for size in usage.outputs) if usage else 0,
        computed_nanos=settlement.computed_nanos,
        reported_nanos=settlement.reported_nanos,
        quoted_nanos=offer.quote.expected.total_nanos if offer.quote else None,
        team=opening.team,
        unpriced=settlement.basis == Basis.UNPRICED and settlement.state is not State.VOID,
    )


def summary(
    offer: Offer,
    role: Role,
    outcome: str,
    duration_s: float,
    cost_nanos: int,
    billed: Billed,
    reason: str,
    error: str | None = None,
) -> AttemptSummary:
    return AttemptSummary(
        provider=offer.target.provider,
        target=offer.target.key,
        outcome=outcome,
        latency_ms=round(duration_s * 1000),
        cost_nanos=cost_nanos,
        billed=str(billed),
        reason=reason,
        error=error,
        role=str(role),
    )


# --- after a crash ----------------------------------------------------------------------------------------------


def recovered_usage(opening: Opening, result: ImageResult) -> Usage:
    """What a job left behind by an earlier process consumed: its row tells what was asked, the result what was made."""
    expected = opening.expected
    return Usage(
        outputs=tuple(image.size for image in result.images if image.size is not None),
        inputs=tuple(ImageSize.parse(size) if size else None for size in expected["inputs"]),
        tokens=result.tokens,
        requests=expected["requests"],
        seconds=result.seconds,
        steps=expected.get("steps"),
        attributes=expected.get("attributes", {}),
        reported=result.reported,
    )


def recovered(
    opening: Opening,
    at: datetime,
    duration_s: float,
    *,
    priced: Priced | None = None,
    cost: Cost | None = None,
    usage: Usage | None = None,
    provider_request_id: str | None = None,
    error: ProviderError | None = None,
    delivered: bool = False,
) -> Settlement:
    """The evidence that resolves an unknown attempt. ``delivered``: somebody can still ask for its pictures."""
    return Settlement(
        attempt_id=opening.attempt_id,
        state=State.SETTLED if priced else State.VOID,
        recorded_at=at,
        outcome=error.consequence.outcome if error else "success" if priced else "cancelled",
        amount_nanos=cost.effective_nanos if cost else 0,
        list_nanos=cost.list.total_nanos if cost else 0,
        currency=opening.currency,
        basis=priced.basis.value if priced else Basis.MEASURED.value,
        items=tuple(item.as_dict() for item in cost.items) if cost else (),
        usage=usage_as_dict(usage) if usage is not None else {},
        computed_nanos=priced.computed.total_nanos if priced and priced.computed else None,
        reported_nanos=priced.reported_nanos if priced else None,
        error_kind=error.kind.value if error else None,
        error=error.message[:500] if error else None,
        provider_request_id=provider_request_id,
        delivered=delivered,
        latency_ms=round(duration_s * 1000),
        evidence="resume",
    )


def requested(opening: Opening) -> ImageRequest:
    """What was asked for, as far as the row of an attempt tells: its form, never its content."""
    size = opening.expected.get("size")
    return ImageRequest(
        Operation(opening.operation),
        opening.requested_model,
        "",
        opening.images,
        size=ImageSize.parse(size) if size else None,
    )


def recorded(attempt: AttemptRecord) -> AttemptSummary:
    """An attempt as the client may see it, from its rows."""
    opening, ended = attempt.opening, attempt.settlement
    return AttemptSummary(
        provider=opening.provider,
        target=opening.target,
        outcome=(ended and ended.outcome) or "unknown",
        latency_ms=(ended and ended.latency_ms) or 0,
        cost_nanos=attempt.cost_nanos,
        billed=_BILLED.get(attempt.state, Billed.MAYBE).value,
        reason=unpack(opening.decision).reason,
        error=ended.error if ended is not None else None,
        role=opening.role.value,
    )


_BILLED = {State.SETTLED: Billed.YES, State.VOID: Billed.NO}


def proves(result: ImageResult) -> bool:
    """Whether an answer says anything that money can be computed from."""
    return bool(result.reported or result.tokens or result.seconds or any(image.size for image in result.images))


# --- failures ---------------------------------------------------------------------------------------------------


def billed(error: ProviderError, provider: Provider) -> Billed:
    """Whether the failure costs money: by the answer itself, else by the provider's billing facts, else the table."""
    if error.billed is not None:
        return error.billed
    fact = provider.billing.get(error.kind.value)
    return Billed(fact) if fact is not None else CONSEQUENCES[error.kind].billed


def outcome(error: ProviderError, cost_nanos: int | None, *, unwanted: bool = False) -> Outcome:
    """The failure in the selector's vocabulary.

    ``cost_nanos`` is None where nothing proves what it cost; ``unwanted``: its client left.
    """
    match error.consequence.health:
        case "failure":
            timed_out = error.kind is ErrorKind.NO_ANSWER
            billed = None if error.billed is Billed.MAYBE else error.billed is Billed.YES
            return Outcome.failure(timed_out=timed_out, billed=billed, cost_nanos=cost_nanos)
        case "capacity":
            return Outcome.rate_limited(error.retry_after_s)
        case "blocked":
            return Outcome.blocked()
        case _ if error.kind is ErrorKind.CANCELLED:
            return Outcome.cancelled(cost_nanos, unwanted=unwanted)
        case _ if error.kind is ErrorKind.REFUSED:
            return Outcome.refused(cost_nanos)
        case _:
            return Outcome.neutral(cost_nanos)


# --- the request, without its content --------------------------------------------------------------------------

_DIGESTED = 2000  # below what makes hashlib give up the interpreter lock


def digest(request: ImageRequest) -> str:
    """Tells equal requests from different ones without keeping a prompt or a picture."""
    words = (
        f"{request.operation}\0{request.model}\0{request.prompt}\0{request.n}\0{request.size}\0{request.quality}\0"
        f"{request.seed}\0"
    )
    content = hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16)
    for image in request.images:  # both ends and the length: hashing megabytes would cost more than routing does
        content.update(len(image.data).to_bytes(8, "big"))
        content.update(image.data.head(_DIGESTED))
        content.update(image.data.tail(_DIGESTED))
    return content.hexdigest()


# --- a dry run --------------------------------------------------------------------------------------------------


def dry_run(order: Order, chosen: Offer, decision: Decision) -> dict[str, Any]:
    """The reference's estimate for the chosen target, and beside it a quote for every candidate."""
    scored = {candidate.target: candidate for candidate in decision.candidates}
    body = _estimate(chosen)
    body["reason"] = decision.reason
    body["cheapest"], body["fastest"] = decision.cheapest, decision.fastest
    body["warnings"] = [warning.as_dict() for warning in order.warnings]
    body["candidates"] = [_quoted(offer, scored[offer.target.key]) for offer in order.offers]
    return body


def _estimate(offer: Offer) -> dict[str, Any]:
    """The offer's quote; where no price is in force the same keys with no amounts: unknown, not zero."""
    if offer.quote is not None:
        return offer.quote.as_dict(offer.model.slug, offer.target.provider)
    body: dict[str, Any] = {"estimated": True, "model": offer.model.slug, "provider": offer.target.provider}
    body |= dict.fromkeys(("total_cost_micros", "total_cost", "low_cost", "high_cost", "price_id", "hint"))
    return body | {"currency": "USD", "components": [], "exact": False, "unpriced": True}


def _quoted(offer: Offer, scored: Scored) -> dict[str, Any]:
    body: dict[str, Any] = {"target": offer.target.key, "excluded_by": offer.lacks or scored.excluded_by}
    if body["excluded_by"] is None or offer.quote is not None:
        body |= _estimate(offer)
    return body | {
        "latency_p50_s": round(scored.p50_s, 3),
        "latency_p95_s": round(scored.p95_s, 3),
        "success": round(scored.success, 4),
        "samples": scored.samples,
    }
