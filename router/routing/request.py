"""What callers hand to the selector: a request with its candidates, and how an attempt ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from router.records import record
from router.types import NO_PREFERENCES, Preferences

LIMIT_S = 120.0


@record
class Candidate:
    """One target that may serve the request, with what this very request would cost there.

    ``excluded`` says why the target cannot serve it (``size``, ``mask``, ...); it stays in the record as a loser.
    """

    target: str  # provider/model
    provider: str
    price_nanos: int  # expected
    price_high_nanos: int  # upper bound; the same where the price is exact
    excluded: str | None = None
    weight: float = 1.0  # share of the requests, for the preset `weighted` and within a priority
    priority: int = 0  # for the preset `priority`: lowest first
    rank: int = 0  # of its model: those of another model (1, 2, ...) serve only when none of a lower rank can
    megapixels: float | None = None  # of one picture, where its model makes another size than the request's
    tags: tuple[str, ...] = ()  # data regions, licences: `region:eu`, `non-commercial`
    limits: tuple[Preferences, ...] = ()  # constraints that hold beside the request's: its model's, the client key's
    failure_bills: float = 0.5  # probability that a failed attempt is billed, from the provider's billing facts
    limit_s: float = LIMIT_S  # an attempt is given up after this long

    @property
    def bills_known(self) -> bool:
        """Whether the provider's billing facts say what a failed attempt costs."""
        return self.failure_bills in (0.0, 1.0)


@record
class RouteRequest:
    """A request as far as routing cares. ``images`` x ``megapixels`` (of one picture) is the work."""

    model: str
    operation: str
    candidates: tuple[Candidate, ...]
    images: int = 1
    megapixels: float = 1.0
    quality: str | None = None
    preferences: Preferences = NO_PREFERENCES
    deadline_s: float | None = None  # seconds the client is still going to wait
    session: str | None = None  # a session stays with its target while that costs next to nothing
    lesser: frozenset[str] = frozenset()  # targets that would deliver less than was asked: only if no other can take it


class Infeasible(Exception):
    """The constraints leave no target.

    ``nearest`` misses the fewest, by the least; ``missed`` are those, the worst first. ``others`` says of every target
    what it misses.
    """

    def __init__(
        self, message: str, nearest: str, missed: tuple[str, ...], others: Mapping[str, tuple[str, ...]]
    ) -> None:
        super().__init__(message)
        self.message = message
        self.nearest = nearest
        self.missed = missed
        self.others = others


class Result(StrEnum):
    """How an attempt counts. Only the first two say something about the target's health."""

    SUCCESS = "success"
    FAILURE = "failure"  # outage, 5xx, timeout, unusable answer
    RATE_LIMITED = "rate_limited"  # capacity: the target is well, but has enough
    BLOCKED = "blocked"  # our credential, credit or quota
    REFUSED = "refused"  # by content policy
    NEUTRAL = "neutral"  # the request's own fault, or ours
    CANCELLED = "cancelled"  # stopped by us or the client


@record
class Outcome:
    """How one attempt ended. Made by the class methods, one per ``Result``."""

    result: Result
    latency_s: float | None = None  # where it differs from the time between on_start and on_end
    cost_nanos: int | None = None  # what it really cost; None: the predicted price if it succeeded, else unknown
    billed: bool | None = None  # whether a failure was billed; None: not known
    timed_out: bool = False  # the failure is a limit of ours: the target would have been slower still
    retry_after_s: float | None = None
    unwanted: bool = False  # stopped because its client left: no word on the target, and no waste of the router's

    @classmethod
    def success(cls, latency_s: float | None = None, cost_nanos: int | None = None) -> Outcome:
        return cls(Result.SUCCESS, latency_s, cost_nanos)

    @classmethod
    def failure(cls, *, timed_out: bool = False, billed: bool | None = None, cost_nanos: int | None = None) -> Outcome:
        return cls(Result.FAILURE, None, cost_nanos, billed, timed_out)

    @classmethod
    def rate_limited(cls, retry_after_s: float | None = None) -> Outcome:
        return cls(Result.RATE_LIMITED, retry_after_s=retry_after_s)

    @classmethod
    def blocked(cls) -> Outcome:
        return cls(Result.BLOCKED)

    @classmethod
    def refused(cls, cost_nanos: int | None = None) -> Outcome:
        return cls(Result.REFUSED, None, cost_nanos)

    @classmethod
    def neutral(cls, cost_nanos: int | None = None) -> Outcome:
        return cls(Result.NEUTRAL, None, cost_nanos)

    @classmethod
    def cancelled(cls, cost_nanos: int | None = None, *, unwanted: bool = False) -> Outcome:
        return cls(Result.CANCELLED, None, cost_nanos, unwanted=unwanted)


@dataclass(frozen=True, slots=True)
class Sample:
    """One past attempt, from the ledger, to warm a new selector with. ``at`` is on the selector's clock."""

    target: str
    operation: str
    images: int
    megapixels: float
    result: Result
    latency_s: float
    at: float
    quality: str | None = None
