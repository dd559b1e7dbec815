"""What the ledger keeps: one Opening per attempt that may be billed, then entries that only ever add to it.

    Opening --> (sent) --> settled | void | unknown;   unknown --> settled | void, by evidence;   settled --> adjusted

An attempt's state is the sum of its entries. Nothing is updated, nothing deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class State(StrEnum):
    OPEN = "open"  # committed before the call left; not yet settled
    SETTLED = "settled"  # amount known, zero included when the provider bills nothing for a failure
    VOID = "void"  # provably never billed
    UNKNOWN = "unknown"  # may have been billed; counted at the worst case until evidence comes


class Role(StrEnum):
    FIRST = "first"
    FAILOVER = "failover"
    RETRY = "retry"
    RESCUE = "rescue"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Opening:
    """An attempt about to leave. Everything needed to recompute its price later without any file is in it."""

    attempt_id: str
    request_id: str
    attempt_no: int  # from 1
    role: Role
    opened_at: datetime  # UTC; the price in force at this moment holds
    key: str  # public name of the client key
    team: str | None
    project: str | None
    tags: Mapping[str, str]
    user: str | None
    retry_count: int  # x-stainless-retry-count of the client's request
    operation: str
    model: str  # as catalogued
    requested_model: str  # as the client wrote it
    target: str  # provider/model
    provider: str
    provider_model: str
    images: int
    estimate_nanos: int  # the upper bound of the quote: what an unknown outcome is booked at
    currency: str
    price_id: str | None  # None: unpriced
    price: Mapping[str, Any]  # snapshot of the price's components
    expected: Mapping[str, Any]  # the quantities the estimate was made from
    request_digest: str  # sha256 of the request's content; prompts are never stored
    decision: Mapping[str, Any]  # why this target: candidates, scores, exclusions


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an attempt ended: its state, its money by line item, and what it was computed from."""

    attempt_id: str
    state: State  # settled, void or unknown
    recorded_at: datetime
    outcome: str  # success, timeout, rate_limited, ...: the metric's vocabulary
    amount_nanos: int  # what it cost us (effective); for unknown the estimate
    list_nanos: int  # the same at list prices
    currency: str
    basis: str  # pricing.Basis
    items: tuple[Mapping[str, Any], ...] = ()  # LineItem.as_dict()
    usage: Mapping[str, Any] = field(default_factory=dict)  # measured quantities
    computed_nanos: int | None = None  # the book's figure, kept beside a reported one
    reported_nanos: int | None = None
    error_kind: str | None = None
    error: str | None = None  # redacted, for people
    provider_request_id: str | None = None
    delivered: bool = False  # the client's request was answered from this attempt
    latency_ms: int | None = None
    ttfb_ms: int | None = None
    queue_ms: int | None = None
    evidence: str = "response"  # response, resume, invoice, operator
