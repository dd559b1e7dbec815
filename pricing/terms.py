"""The operator's layer over list prices: contract discounts, prepaid credits, markups, and dated exchange rates.

List cost and effective cost are both kept, line by line, so that a report can show either and the saving between them.
Everything is pure: how much of a prepaid amount is used up is the ledger's knowledge and an argument here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path

from pricing.charge import NANOS, Basis, Charge, LineItem, exact_decimal, money, round_half_even
from pricing.document import Fields, PricingError, Problem, read_yaml
from pricing.price import utc

_HUNDRED = Decimal(100)
_FOREVER = datetime.max.replace(tzinfo=UTC)


class NoRateError(LookupError):
    """No exchange rate between these currencies is in force at that moment."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What an agreement covers: books and skus (``*`` as in file names), at ``effective_at`` <= t < ``until``."""

    book: str
    skus: str
    effective_at: datetime
    until: datetime = _FOREVER

    def covers(self, book: str, sku: str, at: datetime) -> bool:
        return self.effective_at <= at < self.until and fnmatchcase(book, self.book) and fnmatchcase(sku, self.skus)


@dataclass(frozen=True, slots=True)
class Percentage:
    """A discount or a markup."""

    name: str
    percent: Decimal
    scope: Scope
    payer: str = "*"  # markups only: the team or project that is charged


@dataclass(frozen=True, slots=True)
class Commitment:
    """Credit bought in advance: ``amount`` to spend, for which ``paid`` was paid, both in nanos of ``currency``."""

    name: str
    amount_nanos: int
    paid_nanos: int
    currency: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """One ``base`` buys ``rate`` of ``quote`` from ``effective_at`` on."""

    base: str
    quote: str
    rate: Decimal
    effective_at: datetime
    source: str


@dataclass(frozen=True, slots=True)
class Draw:
    """What one charge takes from one commitment: credit at face value, and what had been paid for that credit."""

    commitment: str
    nanos: int
    paid_nanos: int


@dataclass(frozen=True, slots=True)
class Cost:
    """A charge in all its meanings.

    ``list``: at published prices. ``contracted``: after discounts. ``effective_nanos``: what it costs us, credit drawn
    being worth what was paid for it. ``billed_nanos``: what the provider will still invoice. ``charged``: what the
    payer is charged, markup included.
    """

    list: Charge
    contracted: Charge
    draws: tuple[Draw, ...]
    charged: Charge

    @property
    def billed_nanos(self) -> int:
        return self.contracted.total_nanos - sum(draw.nanos for draw in self.draws)

    @property
    def effective_nanos(self) -> int:
        if not self.draws:
            return self.contracted.total_nanos
        return self.billed_nanos + sum(draw.paid_nanos for draw in self.draws)

    @property
    def items(self) -> tuple[LineItem, ...]:
        """Lines that add up to ``effective_nanos``: the contracted ones, and one per commitment drawn from.

        Of the latter ``quantity`` is the credit used at face value, and the amount what it saved (not positive).
        """
        if not self.draws:
            return self.contracted.items
        return (*self.contracted.items, *(_credit(draw) for draw in self.draws))


@dataclass(frozen=True, slots=True)
class Terms:
    """All agreements of an installation. Of several discounts (or markups) that cover a charge, the first holds."""

    discounts: tuple[Percentage, ...] = ()
    commitments: tuple[Commitment, ...] = ()
    markups: tuple[Percentage, ...] = ()
    rates: tuple[ExchangeRate, ...] = ()

    def apply(
        self,
        charge: Charge,
        book: str,
        sku: str,
        at: datetime,
        *,
        payer: str = "",
        drawn: Mapping[str, int] | None = None,
    ) -> Cost:
        """What the charge means under these terms. ``drawn`` says how many nanos of each commitment are used up.

        Money the provider itself named already has its discounts in it and is not discounted again.
        """
        if not (self.discounts or self.commitments or self.markups):
            return Cost(charge, charge, (), charge)
        moment = utc(at)
        contracted = charge
        if charge.basis is not Basis.REPORTED:
            discount = _first(self.discounts, book, sku, moment)
            if discount is not None:
                contracted = _scaled(charge, 1 - Fraction(discount.percent) / 100)
        draws = []
        left = contracted.total_nanos
        for commitment in self.commitments:
            if commitment.currency == charge.currency and commitment.scope.covers(book, sku, moment):
                unused = commitment.amount_nanos - (drawn or {}).get(commitment.name, 0)
                taken = max(0, min(left, unused))
                if taken:
                    paid = round_half_even(taken * commitment.paid_nanos, commitment.amount_nanos)
                    draws.append(Draw(commitment.name, taken, paid))
                    left -= taken
        markup = _first(self.markups, book, sku, moment, payer)
        charged = contracted if markup is None else _scaled(contracted, 1 + Fraction(markup.percent) / 100)
        return Cost(charge, contracted, tuple(draws), charged)

    def charge_to(self, nanos: int, book: str, sku: str, at: datetime, payer: str) -> int:
        """What the payer is charged for something that cost us ``nanos``: the first markup that covers it, on top."""
        markup = _first(self.markups, book, sku, utc(at), payer)
        if markup is None:
            return nanos
        amount = nanos * (1 + Fraction(markup.percent) / 100)
        return round_half_even(amount.numerator, amount.denominator)

    def convert(self, nanos: int, base: str, quote: str, at: datetime) -> int:
        """The amount in another currency at the rate in force, in nanos, ties to even; NoRateError if there is none."""
        if base == quote:
            return nanos
        moment = utc(at)
        found: tuple[datetime, Fraction] | None = None
        for rate in self.rates:
            if rate.effective_at > moment or {rate.base, rate.quote} != {base, quote}:
                continue
            if found is None or rate.effective_at >= found[0]:
                found = rate.effective_at, Fraction(rate.rate) if rate.base == base else 1 / Fraction(rate.rate)
        if found is None:
            raise NoRateError(f"no exchange rate from {base} to {quote} at {moment.isoformat()}")
        return round_half_even(nanos * found[1].numerator, found[1].denominator)


def load_terms(path: Path) -> Terms:
    """Read a terms file as strictly as a price book; PricingError with all problems."""
    problems: list[Problem] = []
    tree = read_yaml(path, problems)
    terms = Terms()
    if tree is not None:
        fields = Fields(tree, path.name, "", problems)
        terms = Terms(
            tuple(_percentage(entry) for entry in fields.each("discounts", optional=True)),
            tuple(_commitment(entry) for entry in fields.each("commitments", optional=True)),
            tuple(_percentage(entry, payer=True) for entry in fields.each("markups", optional=True)),
            tuple(_rate(entry) for entry in fields.each("exchange_rates", optional=True)),
        )
        fields.end()
    if problems:
        raise PricingError(problems)
    return terms


def _first(entries: tuple[Percentage, ...], book: str, sku: str, at: datetime, payer: str = "") -> Percentage | None:
    return next((e for e in entries if e.scope.covers(book, sku, at) and fnmatchcase(payer, e.payer)), None)


def _credit(draw: Draw) -> LineItem:
    face = money(draw.nanos)
    saved = draw.paid_nanos - draw.nanos
    unit = exact_decimal(Fraction(saved, draw.nanos))
    return LineItem("credit", "commitment", face, face, unit, saved, draw.commitment)


def _scaled(charge: Charge, factor: Fraction) -> Charge:
    """Every line at its unit price times the factor, rounded once."""
    items = []
    for item in charge.items:
        unit_price = Fraction(item.unit_price) * factor
        amount = Fraction(item.billable_quantity) * unit_price * NANOS
        nanos = round_half_even(amount.numerator, amount.denominator)
        items.append(replace(item, unit_price=exact_decimal(unit_price), amount_nanos=nanos))
    return Charge(tuple(items), charge.currency, charge.price_id, charge.basis)


def _scope(fields: Fields) -> Scope:
    scope = Scope(
        fields.text("book"),
        fields.text("skus", "*"),
        fields.instant("effective_at"),
        fields.instant("until", optional=True),
    )
    if scope.until <= scope.effective_at:
        fields.problem("until", "must be after effective_at")
    return scope


def _percentage(fields: Fields, *, payer: bool = False) -> Percentage:
    result = Percentage(
        fields.text("name"), fields.amount("percent"), _scope(fields), fields.text("payer", "*") if payer else "*"
    )
    fields.end()
    if not payer and result.percent > _HUNDRED:
        fields.problem("percent", "cannot be more than 100")
    return result


def _commitment(fields: Fields) -> Commitment:
    amount = fields.amount("amount")
    paid = fields.decimal("paid", amount) or Decimal(0)
    result = Commitment(fields.text("name"), _nanos(amount), _nanos(paid), fields.text("currency"), _scope(fields))
    fields.end()
    if not result.amount_nanos:
        fields.problem("amount", "must be more than 0")
    return result


def _rate(fields: Fields) -> ExchangeRate:
    result = ExchangeRate(
        fields.text("from"),
        fields.text("to"),
        fields.amount("rate"),
        fields.instant("effective_at"),
        fields.text("source"),
    )
    fields.end()
    if not result.rate:
        fields.problem("rate", "must be more than 0")
    return result


def _nanos(amount: Decimal) -> int:
    exact = Fraction(amount) * NANOS
    return round_half_even(exact.numerator, exact.denominator)
