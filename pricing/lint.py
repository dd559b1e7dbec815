"""Checking price books: what must not be loaded, and what deserves a second look (unit slips, prices gone stale)."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from statistics import median

from pricing.book import PACKAGED, price_books, read_books
from pricing.charge import NANOS, money_text
from pricing.document import Problem
from pricing.price import Price
from pricing.quoting import quote
from pricing.usage import Expected, ImageSize

STALE_AFTER_DAYS = 45
_TYPICAL = Expected(size=ImageSize(1024, 1024), prompt_characters=200)
_LEAST, _MOST = Decimal("0.0004"), Decimal("0.65")  # of what a picture of 1024x1024 costs anywhere, in dollars
_JUMP = 5  # a successor this many times dearer or cheaper
_APART = 25  # this many times off the middle of its book
_PEERS = 5  # a smaller book has no meaningful middle


def check_price_books(directory: Path | None = None, today: date | None = None) -> list[Problem]:
    """Everything wrong with the books of a directory (None: the packaged ones), errors first.

    Errors are what ``load_price_books`` refuses. Warnings are prices that are probably a slip of the unit (cents for
    dollars, per thousand for per million): far from what a picture costs anywhere, from the rest of the book, or from
    the price before. With ``today`` also prices not checked for 45 days, and checks dated in the future.
    """
    problems: list[Problem] = []
    prices = read_books(directory or PACKAGED, problems)
    if not problems:
        problems += suspicious(prices)
        problems += [problem for price in prices if today for problem in _staleness(price, today)]
    return sorted(problems, key=lambda problem: (problem.severity != "error", problem.file, problem.key))


def suspicious(prices: list[Price]) -> list[Problem]:
    """A warning for every price that is probably wrong by a factor."""
    found: list[Problem] = []
    books = price_books(prices)
    typical = {price.id: Decimal(quote(price, _TYPICAL).expected.total_nanos) / NANOS for price in prices}
    for name in books.names:
        mine = [price for price in books if price.book == name]
        middle = median(typical[price.id] for price in mine)
        for price in mine:
            cost = typical[price.id]
            if not _LEAST <= cost <= _MOST:
                found.append(
                    _warn(
                        price, f"a picture of 1024x1024 would cost {_text(cost)} {price.currency}: is the unit right?"
                    )
                )
            elif len(mine) >= _PEERS and not middle / _APART <= cost <= middle * _APART:
                found.append(
                    _warn(price, f"{_text(cost)} for 1024x1024 is far from the book's middle, {_text(middle)}")
                )
    for entries in books.entries.values():
        for before, after in pairwise(entries):
            old, new = typical[before.id], typical[after.id]
            if before.currency == after.currency and not old <= new * _JUMP <= old * _JUMP**2:
                found.append(_warn(after, f"1024x1024 goes from {_text(old)} to {_text(new)}: is the unit right?"))
    return found


def _staleness(price: Price, today: date) -> list[Problem]:
    age = (today - price.checked_at).days
    if age < 0:
        return [_warn(price, f"checked_at {price.checked_at} lies in the future")]
    if age > STALE_AFTER_DAYS:
        return [_warn(price, f"was last checked {age} days ago, on {price.checked_at}")]
    return []


def _warn(price: Price, message: str) -> Problem:
    return Problem(f"{price.book}.yaml", price.id.removeprefix(f"{price.book}:"), message, "warning")


def _text(cost: Decimal) -> str:
    return money_text(int(cost * NANOS))
