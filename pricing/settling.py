"""Settling: the final amount of an attempt, from the best evidence there is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from pricing.charge import NANOS, Basis, Charge, LineItem, round_half_even
from pricing.component import Component
from pricing.price import Price
from pricing.quoting import Quote
from pricing.quoting import quote as quote_of
from pricing.rating import Consumption, charge
from pricing.usage import Expected, Reported, Usage

MONEY_UNITS = frozenset({"credit", "tick"})
"""Units that are money in a provider's own coin: reporting them is reporting money, not a quantity."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an attempt cost and how that is known.

    ``charge`` is what counts. ``computed`` is the price book's own figure from what was measured, kept beside a
    reported one; ``drift_nanos`` is charge minus computed, where both exist in one currency.
    """

    charge: Charge
    computed: Charge | None
    reported_nanos: int | None
    basis: Basis
    drift_nanos: int | None

    @property
    def unpriced(self) -> bool:
        return self.basis is Basis.UNPRICED


def settle(price: Price | None, usage: Usage, quote: Quote | None = None) -> Settlement:
    """The attempt's final amount: reported money, else reported quantity x unit price, else measured, else worst case.

    Token counts are the provider's own, so they settle as a reported quantity. Without any price only reported money
    can settle; otherwise the amount is 0 and the basis says UNPRICED. A reported unit the price does not know is no
    evidence and is passed over.
    """
    reported = usage.reported
    if price is None:
        if reported is None or not _is_currency(reported.unit):
            return Settlement(Charge((), "USD", "", Basis.UNPRICED), None, None, Basis.UNPRICED, None)
        said = _as_reported(reported, Decimal(1), reported.unit, "", Basis.REPORTED)
        return Settlement(said, None, said.total_nanos, Basis.REPORTED, None)

    expected = quote.request if quote is not None else None
    computed = _computed(price, usage, expected)
    known = _reported(price, reported) if reported is not None else None
    if known is not None:
        if computed is None or computed.currency != known.currency:
            return Settlement(known, computed, known.total_nanos, known.basis, None)
        drift = known.total_nanos - computed.total_nanos
        # The same money is better told component by component.
        final = known if drift else replace(computed, basis=known.basis)
        return Settlement(final, computed, known.total_nanos, known.basis, drift)
    if computed is not None:
        return Settlement(computed, computed, None, computed.basis, None)
    worst = replace(_worst(price, usage, quote), basis=Basis.WORST_CASE)
    return Settlement(worst, None, None, Basis.WORST_CASE, None)


def _computed(price: Price, usage: Usage, expected: Expected | None) -> Charge | None:
    """The book's price of what was measured or counted; None if nothing was."""
    if usage.tokens and any(component.metric == "token" for component in price.components):
        return charge(price, Consumption.measured(usage, price, expected), Basis.REPORTED_QUANTITY)
    if all(_measurable(component, usage) for component in price.components):
        return charge(price, Consumption.measured(usage, price, expected), Basis.MEASURED)
    return None


def _measurable(component: Component, usage: Usage) -> bool:
    if component.metric == "request" or component.type == "input":
        return bool(usage.outputs)  # a fee alone does not tell what was made
    if component.metric == "second":
        return usage.seconds is not None
    return bool(usage.outputs)


def _worst(price: Price, usage: Usage, quoted: Quote | None) -> Charge:
    if quoted is not None:
        return quoted.high
    expected = Expected(
        images=max(1, len(usage.outputs)),
        inputs=usage.inputs,
        requests=usage.requests,
        steps=usage.steps,
        attributes=usage.attributes,
    )
    return quote_of(price, expected).high


def _reported(price: Price, reported: Reported) -> Charge | None:
    """The provider's figure as money, or None if this price gives its unit no value."""
    if _is_currency(reported.unit):
        return _as_reported(reported, Decimal(1), reported.unit, price.id, Basis.REPORTED)
    value = price.reported.get(reported.unit)
    if value is None:
        return None
    basis = Basis.REPORTED if reported.unit in MONEY_UNITS else Basis.REPORTED_QUANTITY
    return _as_reported(reported, value, price.currency, price.id, basis)


def _as_reported(reported: Reported, unit_price: Decimal, currency: str, price_id: str, basis: Basis) -> Charge:
    exact = Fraction(reported.amount) * Fraction(unit_price) * NANOS
    item = LineItem(
        "request",
        reported.unit.lower(),
        reported.amount,
        reported.amount,
        unit_price,
        round_half_even(exact.numerator, exact.denominator),
        "as reported by the provider",
    )
    return Charge((item,), currency, price_id, basis)


def _is_currency(unit: str) -> bool:
    return len(unit) == 3 and unit.isascii() and unit.isupper()
