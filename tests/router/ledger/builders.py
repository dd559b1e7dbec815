"""Ledger values with sensible contents, for tests."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pricing import Expected, ImageSize, LineItem, Usage
from router.ledger import Ledger, Opening, Role, Settlement, State, expected_as_dict, usage_as_dict

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
SQUARE = ImageSize(1024, 1024)


def opening(attempt_id: str = "a1", **changes: Any) -> Opening:
    fields: dict[str, Any] = {
        "attempt_id": attempt_id,
        "request_id": f"req_{attempt_id}",
        "attempt_no": 1,
        "role": Role.FIRST,
        "opened_at": NOON,
        "key": "studio",
        "team": None,
        "project": "catalogue",
        "tags": {"customer": "acme"},
        "user": None,
        "retry_count": 0,
        "operation": "generate",
        "model": "flux.2-dev-turbo",
        "requested_model": "flux.2-dev-turbo",
        "target": "fal/flux.2-dev-turbo",
        "provider": "fal",
        "provider_model": "fal-ai/flux-2/turbo",
        "images": 1,
        "estimate_nanos": 8_000_000,
        "currency": "USD",
        "price_id": "fal/flux.2-dev-turbo@2026-01-01",
        "price": {"components": [{"metric": "megapixel", "unit_price": "0.008"}]},
        "expected": expected_as_dict(Expected(size=SQUARE)),
        "request_digest": "0" * 64,
        "decision": {"chosen": "fal/flux.2-dev-turbo", "reason": "cheapest"},
    }
    return Opening(**fields | changes)


def settlement(attempt_id: str = "a1", state: State = State.SETTLED, **changes: Any) -> Settlement:
    """A delivered picture; for any other state a failure that ends the attempt in it."""
    fields: dict[str, Any] = {
        "attempt_id": attempt_id,
        "state": state,
        "recorded_at": NOON,
        "outcome": "timeout",
        "amount_nanos": 0 if state is State.VOID else 8_000_000,
        "list_nanos": 0 if state is State.VOID else 8_000_000,
        "currency": "USD",
        "basis": "worst_case",
    }
    if state is State.SETTLED:
        fields |= {
            "outcome": "success",
            "basis": "measured",
            "items": (megapixel_item("1", "1"),),
            "usage": usage_as_dict(Usage(outputs=(SQUARE,))),
            "computed_nanos": 8_000_000,
            "delivered": True,
            "latency_ms": 3232,
        }
    return Settlement(**fields | changes)


def megapixel_item(quantity: str, billable: str) -> dict[str, Any]:
    item = LineItem("output", "megapixel", Decimal(quantity), Decimal(billable), Decimal("0.008"), 8_000_000)
    return item.as_dict()


async def mended(ledger: Ledger) -> None:
    """Return when the ledger takes openings again; it may take five seconds."""
    for _ in range(100):
        if ledger.problem is None:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"still: {ledger.problem}")
