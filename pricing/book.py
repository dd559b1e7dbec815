"""Price books: every price of every provider, each with its source, in force from its date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pricing.document import Fields, PricingError, Problem, read_yaml
from pricing.price import Price, utc

PACKAGED = Path(__file__).parent / "books"


class UnpricedError(LookupError):
    """No price is in force for this sku at that moment. Unknown is not zero: the caller decides."""

    def __init__(self, book: str, sku: str, at: datetime) -> None:
        self.book, self.sku, self.at = book, sku, at
        super().__init__(f"no price for {book}:{sku} at {at.isoformat()}")


@dataclass(frozen=True)
class PriceBooks:
    """All prices, by book and sku, each list in order of effective date. Never changes once loaded."""

    entries: Mapping[tuple[str, str], tuple[Price, ...]]
    version: str
    """A hash of what the books say; the same for the same prices, however the files are written."""

    def price(self, book: str, sku: str, at: datetime) -> Price:
        """The price in force at that moment (the latest whose ``effective_at`` is not after it), or UnpricedError."""
        moment = utc(at)
        for price in reversed(self.entries.get((book, sku), ())):
            if price.effective_at <= moment:
                return price
        raise UnpricedError(book, sku, at)

    def __iter__(self) -> Iterator[Price]:
        for key in sorted(self.entries):
            yield from self.entries[key]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted({book for book, _ in self.entries}))

    def skus(self, book: str) -> tuple[str, ...]:
        return tuple(sorted(sku for name, sku in self.entries if name == book))


def load_price_books(directory: Path | None = None) -> PriceBooks:
    """Read every ``*.yaml`` of the directory (None: the packaged books). PricingError with all problems, if any."""
    problems: list[Problem] = []
    prices = read_books(directory or PACKAGED, problems)
    if problems:
        raise PricingError(problems)
    return price_books(prices)


def price_books(prices: list[Price]) -> PriceBooks:
    """Books of these prices."""
    entries: dict[tuple[str, str], list[Price]] = {}
    for price in sorted(prices, key=lambda price: (price.book, price.sku, price.effective_at)):
        entries.setdefault((price.book, price.sku), []).append(price)
    snapshots = [price.snapshot() for listed in entries.values() for price in listed]
    version = hashlib.sha256(json.dumps(snapshots, sort_keys=True).encode()).hexdigest()[:16]
    return PriceBooks({key: tuple(listed) for key, listed in entries.items()}, version)


def read_books(directory: Path, problems: list[Problem]) -> list[Price]:
    """Every price of the directory's books; what is wrong is added to ``problems``."""
    files = sorted(directory.glob("*.yaml")) if directory.is_dir() else []
    if not files:
        problems.append(Problem(str(directory), "", "has no price books (*.yaml)"))
    prices: list[Price] = []
    for path in files:
        prices += _read_book(path, problems)
    return prices


def _read_book(path: Path, problems: list[Problem]) -> list[Price]:
    tree = read_yaml(path, problems)
    if tree is None:
        return []
    fields = Fields(tree, path.name, "", problems)
    book = fields.text("book")
    if book and book != path.stem:
        fields.problem("book", f"{book!r} must be the file's name, {path.stem!r}")
    fields.text("title")
    fields.text("note", "")
    prices: dict[tuple[str, datetime], Price] = {}
    for model in fields.each("models"):
        skus = model.texts("skus")
        model.key = skus[0] if skus else model.key
        for entry in model.each("prices"):
            first: Price | None = None
            for sku in skus:
                if first is None:
                    price = first = Price.read(entry, book, sku)
                else:
                    price = replace(first, sku=sku)
                if (sku, price.effective_at) in prices:
                    entry.problem("effective_at", f"{sku} has two prices from this moment on")
                prices[sku, price.effective_at] = price
        model.end()
    fields.end()
    return list(prices.values())
