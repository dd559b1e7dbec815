"""What observers are told: facts about finished work, for metrics and logs. One that fails never fails a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol

from router.records import record


@record
class AttemptFinished:
    """One attempt at one target, ended and booked."""

    provider: str
    model: str
    operation: str
    outcome: str  # success, timeout, connect_error, rate_limited, server_error, bad_response, ...
    duration_s: float
    ttfb_s: float | None = None
    queue_s: float | None = None
    images: int = 0
    delivered: bool = False
    amount_nanos: int = 0
    currency: str = "USD"
    basis: str = "measured"
    items: Sequence[Mapping[str, Any]] = ()  # LineItem.as_dict()
    tokens: Mapping[str, int] = field(default_factory=dict)
    input_pixels: int = 0
    output_pixels: int = 0
    computed_nanos: int | None = None
    reported_nanos: int | None = None
    quoted_nanos: int | None = None
    team: str | None = None
    unpriced: bool = False


@record
class RequestFinished:
    """One client request, answered: what the canonical log line and the client-side metrics are made of."""

    request_id: str
    operation: str
    model: str
    outcome: str  # success, client_error, moderation, rejected, error, cancelled
    code: int
    duration_s: float
    overhead_s: float
    attempts: int = 0
    provider: str | None = None
    target: str | None = None
    images: int = 0
    cost_nanos: int = 0
    currency: str = "USD"
    basis: str | None = None
    key: str | None = None
    team: str | None = None
    retry_count: int = 0
    body_in: int = 0
    body_out: int = 0
    error_code: str | None = None
    reason: str | None = None
    mp_in: float = 0.0
    mp_out: float = 0.0


class Observer(Protocol):
    """Receives the facts; every method returns at once."""

    def request_started(self, operation: str) -> None: ...
    def request_finished(self, finished: RequestFinished) -> None: ...
    def attempt_started(self, provider: str) -> None: ...
    def attempt_finished(self, finished: AttemptFinished) -> None: ...
    def decision(
        self, model: str, provider: str, policy: str, reason: str, exclusions: Sequence[tuple[str, str]]
    ) -> None: ...
    def failover(self, model: str, from_provider: str, to_provider: str, reason: str) -> None: ...
    def rescue(self, model: str, from_provider: str, to_provider: str, won: bool) -> None: ...
    def retry(self, provider: str, reason: str) -> None: ...
