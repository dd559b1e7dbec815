"""Quoting: what a request is going to cost, before it runs: expected, at least, at most."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import Any

from pricing.charge import Charge, money_text, round_half_even
from pricing.component import Words
from pricing.price import OPEN, Price
from pricing.rating import Consumption, charge
from pricing.usage import Expected, ImageSize

UNKNOWN_SIZES = (ImageSize(1024, 1024), ImageSize(512, 512), ImageSize(2048, 2048))
"""What ``auto`` may turn into where the price book does not say; the expected size first."""


@dataclass(frozen=True, slots=True)
class Quote:
    """The expected charge with its bounds. ``exact``: the bounds meet, so nothing that matters was assumed."""

    request: Expected
    expected: Charge
    low: Charge
    high: Charge
    exact: bool
    hint: str | None = None

    @property
    def price_id(self) -> str:
        return self.expected.price_id

    def as_dict(self, model: str, provider: str) -> dict[str, Any]:
        """The reference system's dry run (costs in micros of the currency), with bounds and exact amounts added.

        Micros are rounded so that the components add up to the total. Unit prices are decimal text, never floats.
        """
        components: list[dict[str, Any]] = []
        nanos = micros = 0
        for item in self.expected.items:
            before, nanos = micros, nanos + item.amount_nanos
            micros = round_half_even(nanos, 1000)
            components.append(
                {
                    "type": item.type,
                    "metric": item.metric,
                    "quantity": _number(item.quantity),
                    "billable_quantity": _number(item.billable_quantity),
                    "unit_price": format(item.unit_price, "f"),
                    "total_cost": micros - before,
                    "label": item.label,
                }
            )
        return {
            "estimated": True,
            "model": model,
            "provider": provider,
            "total_cost_micros": micros,
            "currency": self.expected.currency,
            "components": components,
            "total_cost": money_text(self.expected.total_nanos),
            "low_cost": money_text(self.low.total_nanos),
            "high_cost": money_text(self.high.total_nanos),
            "exact": self.exact,
            "price_id": self.price_id,
            "hint": self.hint,
        }


def quote(price: Price, expected: Expected) -> Quote:
    """What the request will cost. Pure, and quick enough to be asked for every candidate of every request.

    What the request leaves open (size, quality, a prompt's tokens, inputs nobody could measure) spans the bounds:
    ``low`` is the cheapest and ``high`` the dearest of everything the provider may make of it.
    """
    sizes = (expected.size,) if expected.size is not None else price.sizes or UNKNOWN_SIZES
    words = price.words(expected.attributes)
    choices = [
        [(name, option) for option in options]
        for name, options in price.open.items()
        if len(options) > 1 and expected.attributes.get(name, OPEN) == OPEN
    ]
    middle = low = high = charge(price, _foresee(expected, sizes[0], words, "expected"))
    if len(sizes) > 1 or choices or price.estimated or None in expected.inputs:
        for size in sizes:
            for chosen in product(*choices):
                world = {**words, **dict(chosen)}
                cheap = charge(price, _foresee(expected, size, world, "low"))
                dear = charge(price, _foresee(expected, size, world, "high"))
                low = cheap if cheap.total_nanos < low.total_nanos else low
                high = dear if dear.total_nanos > high.total_nanos else high
    hint = _hint(price, expected, words, middle) if expected.size is not None else None
    return Quote(expected, middle, low, high, low.total_nanos == high.total_nanos, hint)


def _foresee(expected: Expected, size: ImageSize, words: Words, bound: str) -> Consumption:
    return Consumption(
        (size,) * expected.images,
        expected.inputs,
        words,
        expected.requests,
        expected.steps,
        characters=expected.prompt_characters,
        partial_images=expected.partial_images,
        bound=bound,
    )


def _hint(price: Price, expected: Expected, words: Words, middle: Charge) -> str | None:
    """A size a few pixels smaller that saves a whole megapixel of every picture."""
    size = expected.size
    assert size is not None
    for component in price.components:
        if component.rounding != "up_per_image" or component.type == "input" or component.fixed is not None:
            continue
        smaller = _just_below(size, component.megapixel)
        if smaller is not None:
            saved = middle.total_nanos - charge(price, _foresee(expected, smaller, words, "expected")).total_nanos
            if saved > 0:
                return f"{smaller} instead of {size} saves a megapixel per image: {money_text(saved)} {price.currency}"
    return None


def _just_below(size: ImageSize, megapixel: int) -> ImageSize | None:
    """The largest size that takes one megapixel less and at most a sixteenth off either side, or None."""
    units = -(-size.pixels // megapixel)
    limit = (units - 1) * megapixel
    if units < 2 or (size.pixels - limit) * 8 > size.pixels:
        return None  # out of reach: both sides cut by a sixteenth leave seven eighths of the pixels
    width, height = size.width, size.height
    step = min(width & -width, height & -height, 16)  # keep to the multiple the sides already are of

    def trim(side: int, most: int) -> int:
        return most // step * step if most < side else side

    candidates = [
        ImageSize(trim(width, limit // height), height),
        ImageSize(width, trim(height, limit // width)),
    ]
    cut = step
    while cut * 16 <= min(width, height) and (width - cut) * (height - cut) > limit:
        cut += step
    candidates.append(ImageSize(width - cut, height - cut))
    fitting = [
        candidate
        for candidate in candidates
        if 0 < candidate.pixels <= limit
        and (width - candidate.width) * 16 <= width
        and (height - candidate.height) * 16 <= height
    ]
    return max(fitting, key=lambda candidate: candidate.pixels, default=None)


def _number(value: Decimal) -> int | float:
    """A quantity (never money) as a JSON number."""
    return int(value) if value == value.to_integral_value() else float(value)
