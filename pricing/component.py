"""One metered part of a price: what it counts, how it rounds, and which unit price holds when.

Every shape the market uses is data here; none is code for one provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

from pricing.charge import NANOS, exact_decimal
from pricing.document import Fields
from pricing.tokens import image_output_tokens
from pricing.usage import ImageSize

TYPES = ("input", "output", "request")
METRICS = ("megapixel", "pixel", "image", "tile", "step", "token", "second", "request")
PICTURE_METRICS = frozenset({"megapixel", "pixel", "image", "tile", "step"})
TOKENS = (
    "text_input", "cached_text_input", "image_input", "cached_image_input", "image_output", "text_output",
)  # fmt: skip
ROUNDINGS = ("up_per_image", "up_per_request", "exact")
Words = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class When:
    """The circumstances a rate holds in: words of the request, and the picture's size."""

    words: tuple[tuple[str, str], ...] = ()
    size: ImageSize | None = None
    max_pixels: int | None = None

    def holds(self, words: Words, picture: ImageSize | None) -> bool:
        if self.size is not None and picture != self.size:
            return False
        if self.max_pixels is not None and (picture is None or picture.pixels > self.max_pixels):
            return False
        return all(words.get(name) == value for name, value in self.words)

    def __str__(self) -> str:
        parts = [value for _, value in self.words]
        if self.size is not None:
            parts.append(str(self.size))
        if self.max_pixels is not None:
            parts.append(f"up to {self.max_pixels} px")
        return " ".join(parts)

    @classmethod
    def read(cls, fields: Fields | None, *, of_pictures: bool) -> When:
        """Sizes can only be asked where single pictures are counted."""
        if fields is None:
            return ALWAYS
        size, max_pixels = fields.size("size"), fields.integer("max_pixels")
        if not of_pictures and (size is not None or max_pixels is not None):
            fields.problem("", "can only hold words here: no single picture has this price")
        words = tuple((name, fields.text(name)) for name in fields.names())
        fields.end()
        return cls(words, size, max_pixels)

    def as_dict(self) -> dict[str, str]:
        result = dict(self.words)
        if self.size is not None:
            result["size"] = str(self.size)
        if self.max_pixels is not None:
            result["max_pixels"] = str(self.max_pixels)
        return result


ALWAYS = When()


@dataclass(frozen=True, slots=True)
class Rate:
    """A unit price and when it holds. ``nanos`` is the same as an exact fraction of nanos per unit."""

    unit_price: Decimal
    when: When = ALWAYS
    nanos: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        exact = Fraction(self.unit_price) * NANOS
        object.__setattr__(self, "nanos", (exact.numerator, exact.denominator))


@dataclass(frozen=True, slots=True)
class Span:
    """A figure that is only expected, with its bounds."""

    low: Decimal
    expected: Decimal
    high: Decimal
    when: When = ALWAYS

    @classmethod
    def read(cls, fields: Fields, name: str) -> Span:
        expected = fields.amount(name)
        low = fields.decimal("at_least", expected) or Decimal(0)
        high = fields.decimal("at_most", expected) or Decimal(0)
        if not low <= expected <= high:
            fields.problem(name, "at_least, the figure and at_most must be in ascending order")
        when = When.read(fields.fields("when"), of_pictures=True)
        fields.end()
        return cls(low, expected, high, when)

    def as_dict(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = {name: plain(self.expected)}
        if (self.low, self.high) != (self.expected, self.expected):
            result |= {"at_least": plain(self.low), "at_most": plain(self.high)}
        if self.when != ALWAYS:
            result["when"] = self.when.as_dict()
        return result


def _read_q(fields: Fields) -> dict[str, int]:
    q = fields.words("q")
    if any(not text.isdecimal() or int(text) == 0 for text in q.values()):
        fields.problem("q", "must give a whole number per quality")
        return {"": 1}
    return {quality: int(text) for quality, text in q.items()}


def _tokens(q: Mapping[str, int], words: Words, picture: ImageSize) -> int:
    """OpenAI's tokens of one picture; of the dearest quality where the word is not known."""
    return image_output_tokens(q.get(words.get("quality", "")) or max(q.values()), picture)


@dataclass(frozen=True, slots=True)
class Estimate:
    """How to foresee a quantity only the provider can count: tokens or seconds.

    ``q``: OpenAI's token formula, by quality. ``per_image``: so many for each picture. ``per_character`` of the prompt.
    """

    q: Mapping[str, int] = field(default_factory=dict)
    per_image: tuple[Span, ...] = ()
    per_character: Span | None = None
    per_partial_image: int = 0

    @classmethod
    def read(cls, fields: Fields) -> Estimate:
        q = _read_q(fields)
        per_image = tuple(Span.read(row, "quantity") for row in fields.each("per_image", optional=True))
        characters = fields.fields("per_character")
        per_character = None if characters is None else Span.read(characters, "quantity")
        partial = fields.integer("per_partial_image", 0) or 0
        fields.end()
        if not q and not per_image and per_character is None:
            fields.problem("", "must say per_image, per_character or q")
        return cls(q, per_image, per_character, partial)

    def as_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if self.q:
            result["q"] = {quality: str(q) for quality, q in self.q.items()}
        if self.per_image:
            result["per_image"] = [row.as_dict("quantity") for row in self.per_image]
        if self.per_character is not None:
            result["per_character"] = self.per_character.as_dict("quantity")
        if self.per_partial_image:
            result["per_partial_image"] = str(self.per_partial_image)
        return result

    def of_picture(self, words: Words, picture: ImageSize | None, bound: str) -> Decimal | int:
        """The quantity one picture is expected to take; with no row for it, that of the greatest row."""
        if self.q and picture is not None:
            return _tokens(self.q, words, picture)
        if not self.per_image:
            return 0
        row = next((row for row in self.per_image if row.when.holds(words, picture)), None)
        row = row or max(self.per_image, key=lambda row: row.high)
        return row.low if bound == "low" else row.high if bound == "high" else row.expected


@dataclass(frozen=True, slots=True)
class Formula:
    """A price per picture derived from OpenAI's tokens: tokens x token price, rounded up, plus a fixed part."""

    q: Mapping[str, int]
    token_price: Decimal
    round_up_to: Decimal
    plus: Decimal = Decimal(0)

    @classmethod
    def read(cls, fields: Fields) -> Formula:
        q = _read_q(fields)
        if not q:
            fields.problem("q", "is missing: OpenAI's figure per quality")
            q = {"": 1}
        result = cls(
            q,
            fields.amount("token_price"),
            fields.amount("round_up_to"),
            fields.decimal("plus", Decimal(0)) or Decimal(0),
        )
        fields.end()
        if result.round_up_to <= 0:
            fields.problem("round_up_to", "must be more than 0")
        return result

    def as_dict(self) -> dict[str, Any]:
        return {
            "q": {quality: str(q) for quality, q in self.q.items()},
            "token_price": plain(self.token_price),
            "round_up_to": plain(self.round_up_to),
            "plus": plain(self.plus),
        }

    def rate(self, words: Words, picture: ImageSize) -> Rate:
        exact = _tokens(self.q, words, picture) * Fraction(self.token_price)
        step = Fraction(self.round_up_to)
        total = -(-exact // step) * step + Fraction(self.plus)
        return Rate(exact_decimal(total))


@dataclass(frozen=True, slots=True)
class Steps:
    """Units grow with the steps: x max(steps, minimum) / included."""

    default: int  # what the provider takes when the request does not say
    included: int = 1  # the unit price pays for so many
    minimum: int = 0  # fewer cost as much as this

    @classmethod
    def read(cls, fields: Fields) -> Steps:
        result = cls(
            fields.integer("default") or 0, fields.integer("included", 1) or 0, fields.integer("minimum", 0) or 0
        )
        fields.end()
        if result.default < 1 or result.included < 1:
            fields.problem("", "default and included must be at least 1")
            return cls(1)
        return result

    def as_dict(self) -> dict[str, str]:
        return {"default": str(self.default), "included": str(self.included), "minimum": str(self.minimum)}


@dataclass(frozen=True, slots=True)
class Component:
    """One metered part of a price.

    For pictures (``type`` says which: those sent, those made, or both), units are counted as ``metric`` says, then
    ``cap``, ``rounding``, ``minimum`` and the band ``above``..``up_to`` apply, picture by picture unless rounding is
    per request. Of several rates the first that holds is taken; if none does, the dearest, never zero.
    """

    type: str
    metric: str
    rates: tuple[Rate, ...]
    label: str = ""
    when: When = ALWAYS  # the component counts only then (surcharges)
    megapixel: int = 0  # pixels in one megapixel, for that metric
    rounding: str = "exact"
    minimum: int = 0  # units at least
    cap: int | None = None  # units at most: larger pictures are scaled down before they are billed
    assume: Decimal | None = None  # units of a picture whose size nobody knows, where there is no cap
    fixed: Decimal | None = None  # units of every picture, whatever its size
    above: int = 0  # only the units after so many ...
    up_to: int | None = None  # ... and up to so many: "first" and "further" units
    tile: ImageSize | None = None
    steps: Steps | None = None
    token: str = ""
    estimate: Estimate | None = None
    formula: Formula | None = None  # the rate of pictures that no rate is for
    at_least: Rate | None = None  # how low and how high the unit price may really be, where that is uncertain
    at_most: Rate | None = None

    def applies(self, words: Words) -> bool:
        return self.when is ALWAYS or self.when.holds(words, None)

    def rate_for(self, words: Words, picture: ImageSize | None, bound: str = "expected") -> Rate:
        if bound == "low" and self.at_least is not None:
            return self.at_least
        if bound == "high" and self.at_most is not None:
            return self.at_most
        for rate in self.rates:
            if rate.when is ALWAYS or rate.when.holds(words, picture):
                return rate
        if self.formula is not None and picture is not None:
            return self.formula.rate(words, picture)
        return max(self.rates, key=lambda rate: rate.unit_price)

    @classmethod
    def read(cls, fields: Fields) -> Component:
        type_ = fields.text("type", choices=TYPES)
        metric = fields.text("metric", choices=METRICS)
        label = fields.text("label", "")
        when = When.read(fields.fields("when"), of_pictures=False)
        per = 1
        if metric == "token":
            per = fields.integer("per") or 0
            if per not in (1, 1000, 1_000_000):
                fields.problem("per", "must say for how many tokens unit_price is: 1, 1000 or 1000000")
                per = 1
        rates = _read_rates(fields, per, of_pictures=metric in PICTURE_METRICS)
        values: dict[str, Any] = _read_bounds(fields, rates, per)
        if metric == "megapixel":
            values["megapixel"] = fields.integer("megapixel") or 0
            if values["megapixel"] not in (1_048_576, 1_000_000):
                fields.problem("megapixel", "must be 1048576 or 1000000, the pixels of one megapixel")
                values["megapixel"] = 1_000_000
            values["rounding"] = fields.text("rounding", choices=ROUNDINGS)
            values["fixed"] = fields.positive("fixed")
            values["minimum"] = fields.integer("minimum", 0)
        if metric in ("megapixel", "pixel"):
            values["cap"] = fields.integer("cap")
            if values["cap"] == 0:
                fields.problem("cap", "must be more than 0")
            values["assume"] = fields.positive("assume")
            values["above"] = fields.integer("above", 0)
            values["up_to"] = fields.integer("up_to")
            if values["up_to"] is not None and values["up_to"] <= values["above"]:
                fields.problem("up_to", "must be more than above")
            if type_ != "output" and all(values.get(name) is None for name in ("cap", "assume", "fixed")):
                fields.problem("", "needs cap, fixed or assume: what a picture of unknown size costs")
        if metric == "tile":
            values["tile"] = fields.size("tile")
            values["assume"] = fields.positive("assume")
            if values["tile"] is None:
                fields.problem("tile", "is missing: the size of one tile")
                values["tile"] = ImageSize(512, 512)
            if type_ != "output" and values["assume"] is None:
                fields.problem("assume", "is missing: the tiles of a picture of unknown size")
        steps = fields.fields("steps") if metric in PICTURE_METRICS else None
        if steps is not None:
            values["steps"] = Steps.read(steps)
        elif metric == "step":
            fields.problem("steps", "is missing: how many a picture takes when the request does not say")
            values["steps"] = Steps(1)
        if metric == "token":
            values["token"] = fields.text("token", choices=TOKENS)
        if metric in ("token", "second"):
            estimate = fields.fields("estimate")
            if estimate is not None:
                values["estimate"] = Estimate.read(estimate)
                if values["estimate"].q and values.get("token") != "image_output":
                    fields.problem("estimate.q", "counts the tokens of pictures made, nothing else")
                if not (values["estimate"].q or values["estimate"].per_image or "text" in values.get("token", "")):
                    fields.problem("estimate", "must say per_image or q: pictures are what it counts")
            elif not values.get("token", "").startswith("cached_"):
                fields.problem("estimate", "is missing: how many to expect before the provider has counted")
        if metric == "image" and (formula := fields.fields("formula")) is not None:
            values["formula"] = Formula.read(formula)
        fields.end()
        return cls(type_, metric, rates, label, when, **values)

    def as_dict(self) -> dict[str, Any]:
        """The component as a book would have it, all scalars text."""
        result: dict[str, Any] = {"type": self.type, "metric": self.metric}
        if self.label:
            result["label"] = self.label
        if self.when != ALWAYS:
            result["when"] = self.when.as_dict()
        if self.metric == "token":
            result |= {"token": self.token, "per": "1"}
        if len(self.rates) == 1 and self.rates[0].when == ALWAYS:
            result["unit_price"] = plain(self.rates[0].unit_price)
        else:
            result["rates"] = [
                {"unit_price": plain(rate.unit_price)} | ({"when": rate.when.as_dict()} if rate.when != ALWAYS else {})
                for rate in self.rates
            ]
        if self.metric == "megapixel":
            result |= {"megapixel": str(self.megapixel), "rounding": self.rounding}
        for name in ("minimum", "cap", "assume", "fixed", "above", "up_to", "tile"):
            value = getattr(self, name)
            if value is not None and value != 0:
                result[name] = plain(value) if isinstance(value, Decimal) else str(value)
        for part in ("steps", "estimate", "formula"):
            value = getattr(self, part)
            if value is not None:
                result[part] = value.as_dict()
        for name in ("at_least", "at_most"):
            bound = getattr(self, name)
            if bound is not None:
                result[name] = plain(bound.unit_price)
        return result


def _read_rates(fields: Fields, per: int, *, of_pictures: bool) -> tuple[Rate, ...]:
    """One ``unit_price``, or ``rates`` of which the first that holds is taken."""
    if "rates" not in fields:
        return (Rate(_each(fields.amount("unit_price"), per)),)
    if "unit_price" in fields:
        fields.problem("unit_price", "cannot stand beside rates")
        fields.amount("unit_price")
    rates: list[Rate] = []
    for row in fields.each("rates"):
        price = row.amount("unit_price")
        rate = Rate(_each(price, per), When.read(row.fields("when"), of_pictures=of_pictures))
        row.end()
        if any(earlier.when in (ALWAYS, rate.when) for earlier in rates):
            row.problem("when", "never comes to hold: an earlier rate always wins")
        rates.append(rate)
    return tuple(rates) or (Rate(Decimal(0)),)


def _read_bounds(fields: Fields, rates: tuple[Rate, ...], per: int) -> dict[str, Any]:
    """``at_least`` and ``at_most``: how far the true unit price may be from the one that is written."""
    bounds: dict[str, Any] = {}
    for name in ("at_least", "at_most"):
        value = fields.decimal(name, optional=True)
        if value is None:
            continue
        bound = Rate(_each(value, per))
        if len(rates) > 1 or rates[0].when != ALWAYS:
            fields.problem(name, "can only bound a single unit_price")
        elif (bound.unit_price > rates[0].unit_price) != (name == "at_most"):
            fields.problem(name, "is on the wrong side of unit_price")
        bounds[name] = bound
    return bounds


def _each(price: Decimal, per: int) -> Decimal:
    return price if per == 1 else exact_decimal(Fraction(price) / per)


def plain(value: Decimal) -> str:
    """A decimal as the shortest plain text, no exponent."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
