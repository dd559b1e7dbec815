"""A second, independent reading of the price books: plain fractions over untyped YAML, no line of the engine used.

It follows pricing/README.md, not the code, so that one misreading cannot hide in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction as F
from math import ceil, floor
from pathlib import Path
from typing import Any

import yaml

BOOKS = Path(__file__).parents[2] / "pricing" / "books"


def entries() -> dict[tuple[str, str, str], dict[str, Any]]:
    """Every price entry by book, sku and date."""
    found = {}
    for path in sorted(BOOKS.glob("*.yaml")):
        book = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # every scalar is text
        for model in book["models"]:
            for sku in model["skus"]:
                for price in model["prices"]:
                    found[path.stem, sku, price["effective_at"]] = price
    return found


def nanos(
    price: dict[str, Any],
    outputs: list[tuple[int, int]],
    inputs: list[tuple[int, int]],
    words: dict[str, str],
    tokens: dict[str, int],
    steps: int | None,
    seconds: str | None,
    requests: int,
) -> int:
    """The list amount of a fully known usage, in nanos."""
    words = {name: choices[0] for name, choices in price.get("open", {}).items()} | words
    total = 0
    for part in price["components"]:
        if all(words.get(k) == v for k, v in part.get("when", {}).items()):
            total += sum(_amounts(part, outputs, inputs, words, tokens, steps, seconds, requests))
    return total


def _amounts(
    part: dict[str, Any],
    outputs: list[tuple[int, int]],
    inputs: list[tuple[int, int]],
    words: dict[str, str],
    tokens: dict[str, int],
    steps: int | None,
    seconds: str | None,
    requests: int,
) -> Iterator[int]:
    metric = part["metric"]
    if metric in ("request", "second", "token"):
        quantity = F(requests) if metric == "request" else F(seconds or 0)
        if metric == "token":
            quantity = F(tokens.get(part["token"], 0), int(part["per"]))
        yield _money(quantity * F(part["unit_price"]))
        return
    pictures = {"output": outputs, "input": inputs, "request": [*inputs, *outputs]}[part["type"]]
    by_price: dict[F, F] = {}
    for width, height in pictures:
        price = _unit_price(part, words, width, height)
        by_price[price] = by_price.get(price, F(0)) + _units(part, width, height)
    for price, units in by_price.items():
        if part.get("rounding") == "up_per_request":
            units = max(F(ceil(units)), F(part.get("minimum", 0)))
        if "steps" in part:
            taken = max(steps or int(part["steps"]["default"]), int(part["steps"].get("minimum", 0)))
            units = units * taken / int(part["steps"].get("included", 1))
        yield _money(units * price)


def _units(part: dict[str, Any], width: int, height: int) -> F:
    metric = part["metric"]
    if metric in ("image", "step"):
        return F(1)
    if metric == "tile":
        across, down = map(int, part["tile"].split("x"))
        return F(ceil(F(width, across)) * ceil(F(height, down)))
    if "fixed" in part:
        return F(part["fixed"])
    units = F(width * height, int(part.get("megapixel", 1)))
    if "cap" in part:
        units = min(units, F(part["cap"]))
    if part.get("rounding") == "up_per_request":
        return units
    if part.get("rounding") == "up_per_image":
        units = F(ceil(units))
    units = max(units, F(part.get("minimum", 0)))
    if "up_to" in part:
        units = min(units, F(part["up_to"]))
    return max(F(0), units - F(part.get("above", 0)))


def _unit_price(part: dict[str, Any], words: dict[str, str], width: int, height: int) -> F:
    if "rates" not in part:
        return F(part["unit_price"])
    for row in part["rates"]:
        when = dict(row.get("when", {}))
        size, most = when.pop("size", f"{width}x{height}"), int(when.pop("max_pixels", width * height))
        if size == f"{width}x{height}" and width * height <= most and all(words.get(k) == v for k, v in when.items()):
            return F(row["unit_price"])
    if "formula" in part:
        formula = part["formula"]
        q = (
            max(map(int, formula["q"].values()))
            if words.get("quality") not in formula["q"]
            else int(formula["q"][words["quality"]])
        )
        step = F(formula["round_up_to"])
        return ceil(tokens_of(q, width, height) * F(formula["token_price"]) / step) * step + F(formula.get("plus", 0))
    return max(F(row["unit_price"]) for row in part["rates"])


def tokens_of(q: int, width: int, height: int) -> int:
    """OpenAI's output tokens: r = floor((2qs + l) / 2l); ceil(q r (2e6 + wh) / 4e6)."""
    s, l = min(width, height), max(width, height)  # noqa: E741
    r = floor(F(2 * q * s + l, 2 * l))
    return ceil(F(q * r * (2_000_000 + width * height), 4_000_000))


def _money(amount: F) -> int:
    return round(amount * 10**9)  # Fraction rounds half to even
