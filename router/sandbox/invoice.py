"""What each emulated provider would write on its invoice.

Every emulator works out its amounts by itself, from its provider's published rules, without the router's price
engine: the two are compared in tests, so they must be able to disagree. Amounts are exact decimals of the currency,
rounded once per call to 10^-9.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

NANO = Decimal("0.000000001")


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """One billed call. ``quantity`` says in the provider's words what was counted."""

    number: int
    provider: str
    request_id: str
    model: str
    operation: str  # generate, edit
    amount: Decimal
    currency: str
    quantity: Mapping[str, Any]
    at: float  # seconds on the sandbox's clock
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "provider": self.provider,
            "request_id": self.request_id,
            "model": self.model,
            "operation": self.operation,
            "amount": f"{self.amount:f}",
            "amount_nanos": int(self.amount / NANO),
            "currency": self.currency,
            "quantity": {
                key: str(value) if isinstance(value, Decimal) else value for key, value in self.quantity.items()
            },
            "at": round(self.at, 6),
            "note": self.note,
        }


class Invoice:
    """Grows by one line for every call a provider bills. Sums cover everything, the listing the last lines only."""

    def __init__(self, *, keep: int = 50_000) -> None:
        self._keep = keep
        self.clear()

    def clear(self) -> None:
        self.lines: deque[InvoiceLine] = deque(maxlen=self._keep)
        self._totals: dict[str, Decimal] = {}
        self._counts: dict[str, int] = {}

    def add(
        self,
        provider: str,
        *,
        request_id: str,
        model: str,
        operation: str,
        amount: Decimal,
        quantity: Mapping[str, Any],
        at: float,
        note: str | None = None,
    ) -> InvoiceLine:
        amount = amount.quantize(NANO, ROUND_HALF_UP)
        number = sum(self._counts.values()) + 1
        line = InvoiceLine(number, provider, request_id, model, operation, amount, "USD", quantity, at, note)
        self.lines.append(line)
        self._totals[provider] = self._totals.get(provider, Decimal(0)) + amount
        self._counts[provider] = self._counts.get(provider, 0) + 1
        return line

    def count(self, provider: str | None = None) -> int:
        return sum(self._counts.values()) if provider is None else self._counts.get(provider, 0)

    def total(self, provider: str | None = None) -> Decimal:
        return sum(self._totals.values(), Decimal(0)) if provider is None else self._totals.get(provider, Decimal(0))

    def statement(self, providers: Iterable[str] | None = None, *, lines: bool = True) -> dict[str, Any]:
        """JSON-ready: totals by provider and, unless unwanted, the lines."""
        names = sorted(self._totals) if providers is None else list(providers)
        wanted = set(names)
        body: dict[str, Any] = {
            "currency": "USD",
            "total": f"{sum((self.total(name) for name in names), Decimal(0)):f}",
            "total_nanos": sum(int(self.total(name) / NANO) for name in names),
            "providers": {
                name: {
                    "calls": self.count(name),
                    "total": f"{self.total(name):f}",
                    "total_nanos": int(self.total(name) / NANO),
                }
                for name in names
            },
        }
        if lines:
            body["lines"] = [line.as_dict() for line in self.lines if line.provider in wanted]
        return body
