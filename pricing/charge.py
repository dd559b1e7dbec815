"""Priced results: line items that add up exactly, in integer nanos of one currency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Any

NANOS = 1_000_000_000
"""Nanos in one unit of a currency."""

_CONTEXT = Context(prec=60, rounding=ROUND_HALF_EVEN)  # the caller's decimal context must not change an amount


def money(nanos: int) -> Decimal:
    """An amount in whole currency units, exactly (8_000_000 nanos are 0.008)."""
    return Decimal(nanos).scaleb(-9)


@lru_cache(maxsize=4096)
def money_text(nanos: int) -> str:
    """The amount as the shortest plain decimal text: no exponent, no trailing zeros (``0.008``, ``0``)."""
    text = format(money(nanos), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def exact_decimal(value: int | Fraction) -> Decimal:
    """The number as a decimal: exact where one exists within 60 digits, else rounded to that."""
    if value.denominator == 1:
        return Decimal(value.numerator)
    return _CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator))


def round_half_even(numerator: int, denominator: int) -> int:
    """The quotient as a whole number, ties to even: the one rounding rule of all amounts. ``denominator`` > 0."""
    whole, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and whole & 1):
        whole += 1
    return whole


class Basis(StrEnum):
    """Where the settled amount comes from, best first. It stands on every ledger line."""

    REPORTED = "reported"  # the provider said the money
    REPORTED_QUANTITY = "reported_quantity"  # the provider said the quantity, the price book the unit price
    MEASURED = "measured"  # what came out, measured, at the book's price
    WORST_CASE = "worst_case"  # nothing is known: the most it can have cost
    UNPRICED = "unpriced"  # no price in force: money unknown, never zero silently


@dataclass(frozen=True, slots=True)
class LineItem:
    """One price component's share of a charge. Rounded once, to nanos."""

    type: str  # input, output, request
    metric: str  # megapixel, image, token, step, second, request, ...
    quantity: Decimal  # consumed, exact
    billable_quantity: Decimal  # after the component's rounding, minimum and cap
    unit_price: Decimal  # currency units for one billable unit
    amount_nanos: int
    label: str = ""  # which component: "output megapixel", "text input token (high)"
    _described: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def as_dict(self) -> Mapping[str, Any]:
        """JSON-ready, decimals as plain text so that nothing is lost. Made once: equal attempts share their items."""
        if not self._described:
            self._described.update(
                type=self.type,
                metric=self.metric,
                label=self.label,
                quantity=format(self.quantity, "f"),
                billable_quantity=format(self.billable_quantity, "f"),
                unit_price=format(self.unit_price, "f"),
                amount=money_text(self.amount_nanos),
            )
        return self._described


@dataclass(frozen=True, slots=True)
class Charge:
    """A priced usage: its line items in one currency, and the price entry that gave them."""

    items: tuple[LineItem, ...]
    currency: str
    price_id: str
    basis: Basis = Basis.MEASURED
    total_nanos: int = 0  # the sum of the items' amounts; computed, never passed

    def __post_init__(self) -> None:
        object.__setattr__(self, "total_nanos", sum(item.amount_nanos for item in self.items))
