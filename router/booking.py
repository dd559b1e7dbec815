"""What happened, as the ledger, the metrics and the client are told it: pure functions from values to records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from pricing import Basis, ImageSize
from pricing import Settlement as Priced
from router.errors import CONSEQUENCES, Billed, ErrorKind, ProviderError
from router.events import AttemptFinished
from router.ledger import Opening, Role, Settlement, State
from router.offers import Offer, Order
from router.routing import Decision, Outcome, Scored
from router.types import AttemptSummary, Caller, ImageRequest, ImageResult, Provider


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
    order: Order,
    caller: Caller,
    offer: Offer,
    decision: Decision,
    role: Role,
    *,
    attempt_no: int,
) -> Opening:
    """The row that must be durable before the call leaves."""
    request, quote, price = order.request, offer.quote, offer.price
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
        operation=request.operation.value,
        model=order.model.slug,
        requested_model=request.model,
        target=offer.target.key,
        provider=offer.target.provider,
        provider_model=offer.target.endpoints[request.operation],
        images=request.n,
        estimate_nanos=quote.high.total_nanos if quote else 0,
        currency=quote.high.currency if quote else "USD",
        price_id=price.id if price else None,
        price=price.snapshot() if price else {},
        expected=_expected(offer),
        request_digest=digest(request),
        decision=decision.record(),
    )


def settlement(
    attempt_id: str,
    at: datetime,
    request: ImageRequest,
    priced: Priced,
    state: State,
    outcome: str,
    duration_s: float,
    *,
    ran: Timings | None = None,
    result: ImageResult | None = None,
    error: ProviderError | None = None,
    delivered: bool = False,
) -> Settlement:
    """How the attempt ended. A void attempt costs nothing, whatever was quoted."""
    void = state is State.VOID
    charge = priced.charge
    return Settlement(
        attempt_id=attempt_id,
        state=state,
        recorded_at=at,
        outcome=outcome,
        amount_nanos=0 if void else charge.total_nanos,
        list_nanos=0 if void else charge.total_nanos,
        currency=charge.currency,
        basis=charge.basis.value,
        items=() if void else tuple(item.as_dict() for item in charge.items),
        usage=_measured(request, result),
        computed_nanos=priced.computed.total_nanos if priced.computed else None,
        reported_nanos=priced.reported_nanos,
        error_kind=error.kind.value if error else None,
        error=error.message[:500] if error else None,
        provider_request_id=(ran and ran.provider_request_id) or (error and error.provider_request_id) or None,
        delivered=delivered,
        latency_ms=round(duration_s * 1000),
        ttfb_ms=round(ran.ttfb_s * 1000) if ran is not None and ran.ttfb_s is not None else None,
        queue_ms=round(result.queue_s * 1000) if result is not None and result.queue_s is not None else None,
    )


def finished(
    model: str, opening: Opening, settlement: Settlement, offer: Offer, result: ImageResult | None
) -> AttemptFinished:
    """The same facts for metrics."""
    usage = settlement.usage
    return AttemptFinished(
        provider=opening.provider,
        model=model,
        operation=opening.operation,
        outcome=settlement.outcome,
        duration_s=(settlement.latency_ms or 0) / 1000,
        ttfb_s=settlement.ttfb_ms / 1000 if settlement.ttfb_ms is not None else None,
        queue_s=settlement.queue_ms / 1000 if settlement.queue_ms is not None else None,
        images=len(usage.get("outputs", ())),
        delivered=settlement.delivered,
        amount_nanos=settlement.amount_nanos,
        currency=settlement.currency,
        basis=settlement.basis,
        items=settlement.items,
        tokens=result.tokens if result else {},
        input_pixels=usage.get("input_pixels", 0),
        output_pixels=usage.get("output_pixels", 0),
        computed_nanos=settlement.computed_nanos,
        reported_nanos=settlement.reported_nanos,
        quoted_nanos=offer.quote.expected.total_nanos if offer.quote else None,
        team=opening.team,
        unpriced=settlement.basis == Basis.UNPRICED and settlement.state is not State.VOID,
    )


def summary(
    offer: Offer,
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
        billed=billed.value,
        reason=reason,
        error=error,
    )


# --- failures ---------------------------------------------------------------------------------------------------


def billed(error: ProviderError, provider: Provider) -> Billed:
    """Whether the failure costs money: by the answer itself, else by the provider's billing facts, else the table."""
    if error.billed is not None:
        return error.billed
    fact = provider.billing.get(error.kind.value)
    return Billed(fact) if fact is not None else CONSEQUENCES[error.kind].billed


_CHANCE = {Billed.NO: 0.0, Billed.MAYBE: 0.5, Billed.YES: 1.0}


def failure_bills(provider: Provider) -> float:
    """The probability that a server error at this provider is billed, for the selector."""
    fact = provider.billing.get(ErrorKind.SERVER_ERROR.value)
    return _CHANCE[Billed(fact)] if fact is not None else 0.5


def outcome(error: ProviderError) -> Outcome:
    """The failure in the selector's vocabulary."""
    match error.consequence.health:
        case "failure":
            return Outcome.failure()
        case "capacity":
            return Outcome.rate_limited(error.retry_after_s)
        case "blocked":
            return Outcome.blocked()
        case _:
            return Outcome.cancelled() if error.kind is ErrorKind.CANCELLED else Outcome.neutral()


# --- quantities -------------------------------------------------------------------------------------------------


def _sizes(sizes: tuple[ImageSize | None, ...]) -> list[str | None]:
    return [None if size is None else str(size) for size in sizes]


def _expected(offer: Offer) -> Mapping[str, Any]:
    expected = offer.expected
    return {
        "images": expected.images,
        "size": str(expected.size) if expected.size else None,
        "inputs": _sizes(expected.inputs),
        "prompt_characters": expected.prompt_characters,
        "requests": expected.requests,
        "steps": expected.steps,
        "attributes": dict(expected.attributes),
    }


def _measured(request: ImageRequest, result: ImageResult | None) -> Mapping[str, Any]:
    if result is None:
        return {}
    outputs = [image.size for image in result.images if image.size is not None]
    inputs = tuple(image.size for image in request.images)
    return {
        "outputs": [str(size) for size in outputs],
        "inputs": _sizes(inputs),
        "output_pixels": sum(size.pixels for size in outputs),
        "input_pixels": sum(size.pixels for size in inputs if size is not None),
        "tokens": dict(result.tokens),
        "seconds": format(result.seconds, "f") if result.seconds is not None else None,
        "reported": [format(result.reported.amount, "f"), result.reported.unit] if result.reported else None,
        "quality": result.quality,
    }


_DIGESTED = 16 * 1024


def digest(request: ImageRequest) -> str:
    """Tells equal requests from different ones without keeping a prompt or a picture."""
    content = hashlib.blake2b(digest_size=16)
    for part in (
        request.operation.value,
        request.model,
        request.prompt,
        str(request.n),
        str(request.size),
        str(request.quality),
        str(request.seed),
    ):
        content.update(part.encode("utf-8", "surrogatepass"))
        content.update(b"\0")
    for image in request.images:  # both ends and the length: hashing megabytes would cost more than routing does
        content.update(len(image.data).to_bytes(8, "big"))
        content.update(image.data[:_DIGESTED])
        content.update(image.data[-_DIGESTED:])
    return content.hexdigest()


# --- a dry run --------------------------------------------------------------------------------------------------


def dry_run(order: Order, chosen: Offer, decision: Decision) -> dict[str, Any]:
    """The reference's estimate for the chosen target, and beside it a quote for every candidate."""
    if chosen.quote is not None:
        body = chosen.quote.as_dict(order.model.slug, chosen.target.provider)
    else:
        body = {"estimated": True, "model": order.model.slug, "provider": chosen.target.provider, "components": []}
        body |= {"total_cost_micros": None, "currency": "USD"}
    scored = {candidate.target: candidate for candidate in decision.candidates}
    body["reason"] = decision.reason
    body["candidates"] = [_quoted(order, offer, scored[offer.target.key]) for offer in order.offers]
    return body


def _quoted(order: Order, offer: Offer, scored: Scored) -> dict[str, Any]:
    body: dict[str, Any] = {"target": offer.target.key, "excluded_by": offer.lacks or scored.excluded_by}
    if offer.quote is not None:
        body |= offer.quote.as_dict(order.model.slug, offer.target.provider)
    return body | {
        "latency_p50_s": round(scored.p50_s, 3),
        "latency_p95_s": round(scored.p95_s, 3),
        "success": round(scored.success, 4),
        "samples": scored.samples,
    }
