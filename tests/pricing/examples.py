"""Shared by the pricing tests: short ways to write sizes, prices and usages."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pricing import ImageSize, Price, Usage

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HEAD = {
    "book": "test",
    "sku": "model",
    "effective_at": "2026-01-01",
    "source": "official",
    "source_url": "https://example.com/prices",
    "checked_at": "2026-11-20",
    "currency": "USD",
}


def size(text: str) -> ImageSize:
    return ImageSize.parse(text)


def sizes(text: str) -> tuple[ImageSize, ...]:
    return tuple(size(part) for part in text.split())


def price(*components: dict[str, Any], **fields: Any) -> Price:
    """A price of these components, written as in a book (all scalars text)."""
    return Price.from_snapshot(HEAD | fields | {"components": list(components)})


def megapixel(type_: str = "output", unit_price: str = "0.008", **fields: Any) -> dict[str, Any]:
    head = {"type": type_, "metric": "megapixel", "unit_price": unit_price, "megapixel": "1048576"}
    return head | {"rounding": "up_per_image"} | ({"cap": "4"} if type_ == "input" else {}) | fields


def image(unit_price: str = "0.04", type_: str = "output", **fields: Any) -> dict[str, Any]:
    price = {} if "rates" in fields else {"unit_price": unit_price}
    return {"type": type_, "metric": "image"} | price | fields


def made(outputs: str = "1024x1024", inputs: str = "", **fields: Any) -> Usage:
    return Usage(outputs=sizes(outputs), inputs=sizes(inputs), **fields)


def usd(text: str) -> int:
    """Dollars as nanos."""
    nanos = Decimal(text).scaleb(9)
    assert nanos == int(nanos)
    return int(nanos)
