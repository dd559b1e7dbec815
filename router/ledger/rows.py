"""Ledger values as SQL rows and back, and the hash chain that holds the rows together.

A row's hash is SHA-256 over the hash of the row before it (32 zero bytes for the first) and the UTF-8 text of the JSON
array ``[table, column, column, ...]``: its columns in the schema's order without the hash itself, no spaces. Anyone
can recompute it with a JSON encoder and SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

import orjson

from router.ledger.entry import Adjustment, JobNote, Opening, Role, Settlement, State

Row = list[Any]

_HASHED_AT_ONCE = 2047  # bytes; from one more on, hashlib gives up the interpreter lock, which costs more than it saves

GENESIS = bytes(32)
MAX_NANOS = 2**63 - 1

ATTEMPT = [
    "seq", "id", "request_id", "attempt_no", "role", "opened_at", "key", "team", "project", "tags", "user",
    "retry_count", "operation", "model", "requested_model", "target", "provider", "provider_model", "images",
    "estimate_nanos", "currency", "price_id", "price", "expected", "request_digest", "decision",
]  # fmt: skip
JOB = ["seq", "attempt", "recorded_at", "job_id", "state"]
ENTRY = [
    "seq", "attempt", "kind", "recorded_at", "amount_nanos", "list_nanos", "currency", "basis", "evidence", "outcome",
    "delivered", "images", "output_pixels", "input_pixels", "metered_nanomp", "billed_nanomp", "items", "usage",
    "computed_nanos", "reported_nanos", "error_kind", "error", "provider_request_id", "latency_ms", "ttfb_ms",
    "queue_ms", "actor", "reason",
]  # fmt: skip
MARK = ["seq", "recorded_at", "event"]
TABLES: Mapping[str, list[str]] = {"attempt": ATTEMPT, "job": JOB, "entry": ENTRY, "mark": MARK}


def digest(previous: bytes, table: str, row: Row) -> bytes:
    """The chain hash of a row (without its hash column) that follows a row with hash ``previous``."""
    hashed, text = hashlib.sha256(previous), orjson.dumps([table, *row])
    for start in range(0, len(text), _HASHED_AT_ONCE):
        hashed.update(text[start : start + _HASHED_AT_ONCE])
    return hashed.digest()


def utc_text(moment: datetime) -> str:
    """UTC with microseconds, of fixed width so that it sorts as text. A naive time is refused with ValueError."""
    if moment.tzinfo is not UTC:
        if moment.tzinfo is None:
            raise ValueError("a time without a zone")
        moment = moment.astimezone(UTC)
    text = orjson.dumps(moment, option=orjson.OPT_UTC_Z)[1:-1].decode()  # a tenth of what isoformat takes
    return text if moment.microsecond else f"{text[:-1]}.000000Z"


def utc_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def json_text(value: Any) -> str:
    return orjson.dumps(value).decode()


def attempt_row(o: Opening) -> Row:
    """The columns of ``attempt`` after seq. ValueError or TypeError if a value cannot be kept exactly."""
    return [
        o.attempt_id, o.request_id, o.attempt_no, str(o.role), utc_text(o.opened_at), o.key, o.team, o.project,
        json_text(o.tags), o.user, o.retry_count, o.operation, o.model, o.requested_model, o.target, o.provider,
        o.provider_model, o.images, nanos(o.estimate_nanos, low=0), o.currency, o.price_id, json_text(o.price),
        json_text(o.expected), o.request_digest, json_text(o.decision),
    ]  # fmt: skip


def opening(row: Mapping[str, Any]) -> Opening:
    """The inverse of ``attempt_row``, from a row by column name."""
    return Opening(
        attempt_id=row["id"],
        request_id=row["request_id"],
        attempt_no=row["attempt_no"],
        role=Role(row["role"]),
        opened_at=utc_time(row["opened_at"]),
        key=row["key"],
        team=row["team"],
        project=row["project"],
        tags=orjson.loads(row["tags"]),
        user=row["user"],
        retry_count=row["retry_count"],
        operation=row["operation"],
        model=row["model"],
        requested_model=row["requested_model"],
        target=row["target"],
        provider=row["provider"],
        provider_model=row["provider_model"],
        images=row["images"],
        estimate_nanos=row["estimate_nanos"],
        currency=row["currency"],
        price_id=row["price_id"],
        price=orjson.loads(row["price"]),
        expected=orjson.loads(row["expected"]),
        request_digest=row["request_digest"],
        decision=orjson.loads(row["decision"]),
    )


def job_row(attempt: int, note: JobNote) -> Row:
    return [attempt, utc_text(note.recorded_at), note.job_id, json_text(note.state)]


def settled_row(attempt: int, s: Settlement) -> Row:
    """The columns of ``entry`` after seq for an outcome; picture quantities come from usage and items."""
    images, output, input_ = pictures(s.usage)
    metered, billed = megapixels(s.items)
    return [
        attempt, str(s.state), utc_text(s.recorded_at), nanos(s.amount_nanos, low=0), nanos(s.list_nanos, low=0),
        s.currency, s.basis, s.evidence, s.outcome, int(s.delivered), images, output, input_, metered, billed,
        json_text(s.items), json_text(s.usage), s.computed_nanos, s.reported_nanos, s.error_kind, s.error,
        s.provider_request_id, s.latency_ms, s.ttfb_ms, s.queue_ms, None, None,
    ]  # fmt: skip


def released_row(attempt: int, held_nanos: int, currency: str, s: Settlement) -> Row:
    """What an unknown attempt was held at goes back when evidence resolves it."""
    at = utc_text(s.recorded_at)
    return [attempt, "released", at, -held_nanos, 0, currency, None, s.evidence, None, 0, 0, 0, 0, 0, 0,
            *[None] * 12]  # fmt: skip


def adjusted_row(attempt: int, a: Adjustment) -> Row:
    at, amount = utc_text(a.recorded_at), nanos(a.amount_nanos, low=-MAX_NANOS)
    return [attempt, "adjusted", at, amount, 0, a.currency, None, "operator", None, 0, 0, 0, 0, 0, 0,
            *[None] * 10, a.actor, a.reason]  # fmt: skip


def settlement(row: Mapping[str, Any], attempt_id: str) -> Settlement:
    """The inverse of ``settled_row``, from a row by column name."""
    return Settlement(
        attempt_id=attempt_id,
        state=State(row["kind"]),
        recorded_at=utc_time(row["recorded_at"]),
        outcome=row["outcome"],
        amount_nanos=row["amount_nanos"],
        list_nanos=row["list_nanos"],
        currency=row["currency"],
        basis=row["basis"],
        items=tuple(orjson.loads(row["items"])),
        usage=orjson.loads(row["usage"]),
        computed_nanos=row["computed_nanos"],
        reported_nanos=row["reported_nanos"],
        error_kind=row["error_kind"],
        error=row["error"],
        provider_request_id=row["provider_request_id"],
        delivered=bool(row["delivered"]),
        latency_ms=row["latency_ms"],
        ttfb_ms=row["ttfb_ms"],
        queue_ms=row["queue_ms"],
        evidence=row["evidence"],
    )


def nanos(amount: object, *, low: int) -> int:
    """The amount, if it is an integer that SQL keeps exactly: never a float, never a bool."""
    if type(amount) is not int or not low <= amount <= MAX_NANOS:
        raise ValueError(f"{amount!r} is not an amount in nanos")
    return amount


def pictures(usage: Mapping[str, Any]) -> tuple[int, int, int]:
    """How many pictures came out, their pixels, and the pixels that went in as far as they are known."""
    outputs = usage.get("outputs", ())
    return len(outputs), sum(map(pixels, outputs)), sum(map(pixels, filter(None, usage.get("inputs", ()))))


@lru_cache(maxsize=1024)
def pixels(size: str) -> int:
    width, _, height = size.partition("x")
    return int(width) * int(height)


def megapixels(items: tuple[Mapping[str, Any], ...]) -> tuple[int, int]:
    """Megapixels of the priced components in 1e-9, as metered and as billed after rounding."""
    metered = billed = 0
    for item in items:
        if item["metric"] == "megapixel":
            metered += _nano(item["quantity"])
            billed += _nano(item["billable_quantity"])
    return metered, billed


@lru_cache(maxsize=1024)
def _nano(quantity: str) -> int:
    """Half even; a thousandth of a pixel is lost at most."""
    return round(Decimal(quantity).scaleb(9))
