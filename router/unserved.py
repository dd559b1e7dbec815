"""Why a request has no pictures, as its client is told: pure functions from what happened to the error that says it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from router import booking
from router.errors import CONSEQUENCES, SERVER, Billed, ErrorKind, ProviderError, RequestError
from router.ledger import State
from router.ledger.reports import AttemptRecord
from router.routing import Decision, Infeasible
from router.types import AttemptSummary

SOON_S = 60.0  # a wait that clients do by themselves: OpenAI's for JavaScript waits for no longer


def infeasible(error: Infeasible) -> RequestError:
    """No target can meet the constraints; the nearest one is named with what it misses."""
    return RequestError(
        400,
        error.message,
        code="no_feasible_provider",
        param="provider",
        details={"nearest": {"target": error.nearest, "misses": error.missed}, "candidates": error.others},
    )


def exhausted(model: str, decision: Decision) -> RequestError:
    """No target may be tried now, and none has been. Where all are to be left alone for a while, that is a 429.

    It is worth sending again only where a target is known to be back soon.
    """
    candidates = {c.target: c.excluded_by for c in decision.candidates}
    if set(candidates.values()) == {"rate_limited"}:
        return _limited(model, decision.retry_after_s, {"attempts": [], "candidates": candidates})
    after_s = decision.retry_after_s
    return RequestError(
        503,
        f"No provider of {model} can take requests at the moment.",
        code="all_providers_failed",
        type=SERVER,
        retry=after_s is not None and after_s <= SOON_S,
        retry_after_s=after_s,
        details={"attempts": [], "candidates": candidates},
    )


def _limited(model: str, retry_after_s: float | None, details: Mapping[str, object]) -> RequestError:
    return RequestError(
        429,
        f"Every provider of {model} is limiting requests at the moment.",
        code="rate_limit_exceeded",
        type="requests",
        retry=True,
        retry_after_s=retry_after_s or 5.0,
        details=details,
    )


def failed(
    model: str, attempts: Sequence[AttemptSummary], error: ProviderError, *, late: bool, retry_after_s: float | None
) -> RequestError:
    """The last attempt failed with ``error``. It may be sent again only if nothing may have been billed.

    ``late``: the request's time is over. ``retry_after_s``: the least that a provider asked to wait.
    """
    consequence = error.consequence
    if error.kind in (ErrorKind.REFUSED, ErrorKind.BAD_REQUEST):
        return RequestError(
            consequence.status,
            error.message,
            code=consequence.code,
            param=error.param if error.kind is ErrorKind.BAD_REQUEST else "prompt",
            type=consequence.type,
            details=error.details,
        )
    if all(attempt.outcome == "rate_limited" for attempt in attempts):
        return _limited(model, retry_after_s, _told(attempts))
    status, code = (504, "timeout") if late or error.kind is ErrorKind.NO_ANSWER else (502, "all_providers_failed")
    if error.kind is ErrorKind.DOWNLOAD:
        status, code = consequence.status, consequence.code
    tried = ", ".join(dict.fromkeys(attempt.provider for attempt in attempts))
    return RequestError(
        status,
        f"{model} could not be served; tried {tried}. Last: {error.message}",
        code=code,
        type=SERVER,
        retry=consequence.retry and all(attempt.billed == Billed.NO for attempt in attempts),
        details=_told(attempts),
    )


def given_up(attempts: Sequence[AttemptSummary] = ()) -> RequestError:
    """The client left, and the request was given up. It may run again if it has cost nothing."""
    consequence = CONSEQUENCES[ErrorKind.CANCELLED]
    return RequestError(
        consequence.status,
        "The client left before there was an answer, so the request was stopped.",
        code=consequence.code,
        type=consequence.type,
        retry=all(attempt.billed == Billed.NO for attempt in attempts),
        details=_told(attempts),
    )


def unrecovered(attempts: Sequence[AttemptRecord], error: ProviderError | None) -> RequestError:
    """Why a request that was cut off has no pictures, as exactly as it is known."""
    states = {attempt.state for attempt in attempts}
    told = _told(map(booking.recorded, attempts))
    if states & {State.OPEN, State.UNKNOWN}:
        return RequestError(
            502,
            "The router was stopped while a provider was at work, and the provider cannot be asked what became of it. "
            "It may have been billed; the ledger holds it at its estimate.",
            code="outcome_unknown",
            type=SERVER,
            details=told,
        )
    if any(one.settlement is not None and one.settlement.outcome == "success" for one in attempts):
        return RequestError(
            502,
            "The pictures were made and paid, but the router was stopped before it could keep them.",
            code="result_lost",
            type=SERVER,
            details=told,
        )
    if error is not None:
        consequence = error.consequence
        return RequestError(
            consequence.status, error.message, code=consequence.code, type=consequence.type, details=told
        )
    return RequestError(
        503,
        "The router was stopped before a provider had made anything. It can be sent again.",
        code="interrupted",
        type=SERVER,
        retry=State.SETTLED not in states,
        details=told,
    )


def _told(attempts: Iterable[AttemptSummary]) -> dict[str, object]:
    return {"attempts": [{"provider": one.provider, "outcome": one.outcome, "billed": one.billed} for one in attempts]}
