"""What other price books would make of usage that is already in the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pricing.book import PriceBooks, UnpricedError
from pricing.price import Price
from pricing.quoting import quote
from pricing.settling import settle
from pricing.usage import Expected, Usage


@dataclass(frozen=True, slots=True)
class Metered:
    """A ledger row as far as pricing needs it: what was consumed under which sku, and when its attempt started.

    ``price`` is the row's own snapshot: what was booked counts as old, whatever the old books say now.
    ``expected`` prices a row of which nothing was measured.
    """

    book: str
    sku: str
    at: datetime
    usage: Usage
    price: Price | None = None
    expected: Expected | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """What changes for one sku in one currency, over all its rows. Rows without a price on a side add nothing to it."""

    book: str
    sku: str
    currency: str
    rows: int
    old_nanos: int
    new_nanos: int
    old_unpriced: int
    new_unpriced: int

    @property
    def change_nanos(self) -> int:
        return self.new_nanos - self.old_nanos


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sets of books compared. Prices are named by id; ``edited`` ones changed in place, which history forbids."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    edited: tuple[str, ...]
    effects: tuple[Effect, ...]  # only where money or coverage changes, the greatest change first


def diff(old: PriceBooks, new: PriceBooks, usages: Iterable[Metered]) -> Difference:
    """Settle every usage with both books at list price, summed by sku and currency. Money the provider named stays."""
    before, after = ({price.id: price for price in books} for books in (old, new))
    sums: dict[tuple[str, str, str], Effect] = {}
    for row in usages:
        was, now = row.price or _price(old, row), _price(new, row)
        for currency in {price.currency for price in (was, now) if price is not None}:
            key = (row.book, row.sku, currency)
            sums[key] = _add(sums.get(key) or Effect(*key, 0, 0, 0, 0, 0), row, was, now)
    changed = [effect for effect in sums.values() if effect.change_nanos or effect.old_unpriced != effect.new_unpriced]
    return Difference(
        tuple(sorted(after.keys() - before.keys())),
        tuple(sorted(before.keys() - after.keys())),
        tuple(sorted(id for id in before.keys() & after.keys() if before[id] != after[id])),
        tuple(sorted(changed, key=lambda e: (-abs(e.change_nanos), e.book, e.sku, e.currency))),
    )


def _price(books: PriceBooks, row: Metered) -> Price | None:
    try:
        return books.price(row.book, row.sku, row.at)
    except UnpricedError:
        return None


def _add(effect: Effect, row: Metered, was: Price | None, now: Price | None) -> Effect:
    def nanos(price: Price | None) -> int:
        if price is None or price.currency != effect.currency:
            return 0
        quoted = quote(price, row.expected) if row.expected is not None else None
        return settle(price, row.usage, quoted).charge.total_nanos

    return Effect(
        effect.book,
        effect.sku,
        effect.currency,
        effect.rows + 1,
        effect.old_nanos + nanos(was),
        effect.new_nanos + nanos(now),
        effect.old_unpriced + (was is None),
        effect.new_unpriced + (now is None),
    )
