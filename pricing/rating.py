"""Rating: usage x price -> charge. Exact rational arithmetic, one rounding per line item (half-even, to nanos)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from pricing.charge import Basis, Charge, LineItem, exact_decimal, round_half_even
from pricing.component import PICTURE_METRICS, Component, Rate, Words
from pricing.price import Price
from pricing.usage import Expected, ImageSize, Usage

Quantity = int | Fraction


@dataclass(frozen=True, slots=True)
class Consumption:
    """What there is to rate, measured or foreseen. ``bound`` (low, expected, high) decides what nobody knows."""

    outputs: tuple[ImageSize, ...]
    inputs: tuple[ImageSize | None, ...]
    words: Words
    requests: int
    steps: int | None
    seconds: Decimal | None = None
    tokens: Mapping[str, int] | None = None  # None: nobody counted them
    characters: int = 0
    partial_images: int = 0
    bound: str = "expected"

    @classmethod
    def measured(cls, usage: Usage, price: Price, expected: Expected | None = None) -> Consumption:
        """A finished attempt's; ``expected`` gives what no provider reports back (the prompt's length)."""
        return cls(
            usage.outputs,
            usage.inputs,
            price.words(usage.attributes),
            usage.requests,
            usage.steps,
            usage.seconds,
            usage.tokens or None,
            expected.prompt_characters if expected else 0,
            expected.partial_images if expected else 0,
        )

    def pictures(self, type_: str) -> tuple[ImageSize | None, ...]:
        if type_ == "output":
            return self.outputs
        return self.inputs if type_ == "input" else self.inputs + self.outputs


def rate(price: Price, usage: Usage) -> Charge:
    """What this usage costs at list price. Pure, exact; never fails for a price that was loaded."""
    return charge(price, Consumption.measured(usage, price))


def charge(price: Price, consumed: Consumption, basis: Basis = Basis.MEASURED) -> Charge:
    """The charge of a consumption: the line items of every component that counts."""
    items: list[LineItem] = []
    for component in price.components:
        if component.applies(consumed.words):
            items += _items(component, consumed)
    return Charge(tuple(items), price.currency, price.id, basis)


def line_item(component: Component, rate: Rate, consumed: Quantity, billable: Quantity) -> LineItem:
    """One component's share; the only place where an amount is rounded."""
    nanos, per = rate.nanos
    label = component.label or f"{component.token.replace('_', ' ') or component.type} {component.metric}"
    return LineItem(
        component.type,
        component.metric,
        exact_decimal(consumed),
        exact_decimal(billable),
        rate.unit_price,
        round_half_even(billable.numerator * nanos, billable.denominator * per),
        f"{label} ({rate.when})" if rate.when.words or rate.when.size or rate.when.max_pixels else label,
    )


def _items(component: Component, consumed: Consumption) -> Iterable[LineItem]:
    if component.metric in PICTURE_METRICS:
        return _picture_items(component, consumed)
    quantity: Quantity
    if component.metric == "request":
        quantity = consumed.requests
    elif component.metric == "second":
        quantity = _seconds(component, consumed)
    else:
        quantity = _tokens(component, consumed)
    if quantity == 0:
        return ()
    return (line_item(component, component.rate_for(consumed.words, None, consumed.bound), quantity, quantity),)


def _picture_items(component: Component, consumed: Consumption) -> Iterable[LineItem]:
    """Count pictures, each by its own rate; one line item per rate."""
    pictures = consumed.pictures(component.type)
    if not pictures:
        return ()
    sums: dict[Rate, tuple[Quantity, Quantity]] = {}
    per_request = component.rounding == "up_per_request"
    for picture in pictures:
        quantity = raw_units(component, consumed, picture)
        billable = quantity
        if component.cap is not None and billable > component.cap:
            billable = component.cap
        if not per_request:
            billable = _billable(component, billable)
        rate = component.rate_for(consumed.words, picture, consumed.bound)
        before = sums.get(rate)
        sums[rate] = (quantity, billable) if before is None else (before[0] + quantity, before[1] + billable)
    items = []
    for rate, (quantity, billable) in sums.items():
        if per_request:
            billable = _billable(component, billable)
        if component.steps is not None:
            factor = _step_factor(component, consumed)
            billable = billable * factor
            if component.metric == "step":
                quantity = quantity * (consumed.steps or component.steps.default)
        if billable:  # nothing reaches into the band of further megapixels: no line for it
            items.append(line_item(component, rate, quantity, billable))
    return items


def raw_units(component: Component, consumed: Consumption, picture: ImageSize | None) -> Quantity:
    """Units in one picture before any rounding."""
    metric = component.metric
    if metric in ("image", "step"):
        return 1
    if component.fixed is not None:
        return _exact(component.fixed)
    if picture is None:
        return _unknown_units(component, consumed)
    if metric == "megapixel":
        pixels, unit = picture.pixels, component.megapixel
        return pixels // unit if pixels % unit == 0 else Fraction(pixels, unit)
    if metric == "pixel":
        return picture.pixels
    tile = component.tile
    assert tile is not None
    return -(-picture.width // tile.width) * -(-picture.height // tile.height)


def _unknown_units(component: Component, consumed: Consumption) -> Quantity:
    """A picture nobody could measure counts as the cap, else as what the component assumes; never as nothing."""
    if consumed.bound == "low":
        return max(component.minimum, 1)
    if component.cap is not None:
        return component.cap
    return _exact(component.assume) if component.assume is not None else 1


def _billable(component: Component, quantity: Quantity) -> Quantity:
    """Rounding, minimum and band."""
    if component.rounding != "exact" and component.fixed is None:
        quantity = -(-quantity.numerator // quantity.denominator)
    if quantity < component.minimum:
        quantity = component.minimum
    if component.up_to is not None and quantity > component.up_to:
        quantity = component.up_to
    return max(quantity - component.above, 0) if component.above else quantity


def _step_factor(component: Component, consumed: Consumption) -> Quantity:
    steps = component.steps
    assert steps is not None
    taken = max(consumed.steps or steps.default, steps.minimum)
    return Fraction(taken, steps.included) if taken % steps.included else taken // steps.included


def _seconds(component: Component, consumed: Consumption) -> Quantity:
    if consumed.seconds is not None:
        return _exact(consumed.seconds)
    assert component.estimate is not None
    pictures = consumed.outputs
    return sum((_exact(component.estimate.of_picture(consumed.words, size, consumed.bound)) for size in pictures), 0)


def _tokens(component: Component, consumed: Consumption) -> int:
    """Counted tokens; where nobody counted, what the estimate says, rounded up to whole tokens."""
    if consumed.tokens is not None:
        return consumed.tokens.get(component.token, 0)
    estimate = component.estimate
    if estimate is None:
        return 0  # cached tokens: a saving nobody can foresee
    total: Quantity = 0
    for picture in consumed.inputs if component.type == "input" else consumed.outputs:
        total += _exact(estimate.of_picture(consumed.words, picture, consumed.bound))
    if consumed.bound != "low":  # fewer partial pictures may come than were asked for
        total += estimate.per_partial_image * consumed.partial_images
    if estimate.per_character is not None:
        span = estimate.per_character
        each = span.low if consumed.bound == "low" else span.high if consumed.bound == "high" else span.expected
        total += consumed.characters * _exact(each)
    return -(-total.numerator // total.denominator)


def _exact(value: Decimal | int) -> Quantity:
    fraction = Fraction(value)
    return fraction.numerator if fraction.denominator == 1 else fraction
