"""What the ledger keeps: one Opening per attempt that may be billed, then entries that only ever add to it.

    Opening --> (sent) --> settled | void | unknown;   unknown --> settled | void, by evidence;   settled --> adjusted

An attempt's state is the sum of its entries. Nothing is updated, nothing deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from pricing import Expected, ImageSize, Reported, Usage
from router.records import record


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


@record
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
    expected: Mapping[str, Any]  # the quantities the estimate was made from: expected_as_dict()
    request_digest: str  # sha256 of the request's content; prompts are never stored
    decision: Mapping[str, Any]  # why this target: candidates, scores, exclusions


@record
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
    usage: Mapping[str, Any] = field(default_factory=dict)  # measured quantities: usage_as_dict()
    computed_nanos: int | None = None  # the book's figure, kept beside a reported one
    reported_nanos: int | None = None
    error_kind: str | None = None
    error: str | None = None  # redacted, for people
    provider_request_id: str | None = None
    delivered: bool = False  # the client's request was answered from this attempt
    latency_ms: int | None = None
    ttfb_ms: int | None = None
    queue_ms: int | None = None
    evidence: str = "response"  # response, resume, restart, router (never sent), invoice, operator


@record
class JobNote:
    """An upstream job that was accepted for an attempt: what a restart needs to ask for it."""

    attempt_id: str
    job_id: str
    state: Mapping[str, str]  # URLs and ids, never a secret
    recorded_at: datetime


@record
class Adjustment:
    """A correction of a resolved attempt's cost. Signed: what it adds to the amount booked so far."""

    attempt_id: str
    amount_nanos: int
    currency: str
    reason: str
    actor: str
    recorded_at: datetime


@record
class Unresolved:
    """An attempt whose outcome is not known yet, with what is needed to ask the provider for it."""

    opening: Opening
    state: State  # open: running, or its process died and no other has started since; unknown
    jobs: tuple[JobNote, ...]


def usage_as_dict(usage: Usage) -> dict[str, Any]:
    """The JSON form of measured quantities: the ``usage`` of a Settlement. Decimals as text, nothing lost."""
    record: dict[str, Any] = {
        "outputs": [str(size) for size in usage.outputs],
        "inputs": [size and str(size) for size in usage.inputs],
        "requests": usage.requests,
    }
    if usage.tokens:
        record["tokens"] = dict(usage.tokens)
    if usage.seconds is not None:
        record["seconds"] = format(usage.seconds, "f")
    if usage.steps is not None:
        record["steps"] = usage.steps
    if usage.attributes:
        record["attributes"] = dict(usage.attributes)
    if usage.reported is not None:
        record["reported"] = {"amount": format(usage.reported.amount, "f"), "unit": usage.reported.unit}
    return record


def usage_from_dict(record: Mapping[str, Any]) -> Usage:
    """The inverse of ``usage_as_dict``; ValueError or KeyError if it is not one."""
    seconds, reported = record.get("seconds"), record.get("reported")
    return Usage(
        outputs=tuple(ImageSize.parse(size) for size in record.get("outputs", ())),
        inputs=tuple(size and ImageSize.parse(size) for size in record.get("inputs", ())),
        tokens=record.get("tokens", {}),
        requests=record.get("requests", 1),
        seconds=None if seconds is None else Decimal(seconds),
        steps=record.get("steps"),
        attributes=record.get("attributes", {}),
        reported=None if reported is None else Reported(Decimal(reported["amount"]), reported["unit"]),
    )


def expected_as_dict(expected: Expected) -> dict[str, Any]:
    """The JSON form of the quantities behind an estimate: the ``expected`` of an Opening."""
    record: dict[str, Any] = {
        "images": expected.images,
        "size": expected.size and str(expected.size),
        "inputs": [size and str(size) for size in expected.inputs],
        "requests": expected.requests,
    }
    if expected.prompt_characters:
        record["prompt_characters"] = expected.prompt_characters
    if expected.steps is not None:
        record["steps"] = expected.steps
    if expected.partial_images:
        record["partial_images"] = expected.partial_images
    if expected.attributes:
        record["attributes"] = dict(expected.attributes)
    return record
