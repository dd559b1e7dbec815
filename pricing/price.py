"""A price: the components in force from a date, and where they come from.

The same reader takes a price out of a book and out of a snapshot, so that a ledger row can be rated again years later
without any file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from pricing.component import Component, Words, plain
from pricing.document import Fields, PricingError, Problem
from pricing.usage import ImageSize

SOURCES = ("official", "secondary", "measured", "operator", "contract")
CERTAINTIES = ("high", "medium", "low")
REPORTED_UNITS = ("credit", "tick", "unit", "megapixel", "image", "second")
OPEN = "auto"
"""The word by which a request leaves a choice to the provider; the same as saying nothing."""


def _known(components: tuple[Component, ...], name: str) -> set[str]:
    """Every value of a word that some component's price or estimate depends on."""
    known: set[str] = set()
    for component in components:
        whens = [component.when, *(rate.when for rate in component.rates)]
        for part in (component.estimate, component.formula):
            if part is not None and name == "quality":
                known |= part.q.keys()
        if component.estimate is not None:
            whens += [span.when for span in component.estimate.per_image]
        known |= {value for when in whens for word, value in when.words if word == name}
    return known


@dataclass(frozen=True, slots=True)
class Price:
    """What one sku of one book costs from ``effective_at`` on. ``at`` equal to it already counts."""

    book: str
    sku: str  # the provider's own model id
    effective_at: datetime
    currency: str
    components: tuple[Component, ...]
    source: str  # official, secondary, measured, operator, contract
    source_url: str
    checked_at: date
    certainty: str = "high"
    note: str = ""
    open: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What the provider may choose when the request says nothing or ``auto``, by word; the expected choice first."""
    sizes: tuple[ImageSize, ...] = ()
    """The same for the output's size."""
    reported: Mapping[str, Decimal] = field(default_factory=dict)
    """What one reported unit (credit, tick, catalogue unit, ...) is worth in ``currency``."""
    id: str = field(init=False, compare=False)
    defaults: Words = field(init=False, repr=False, compare=False)
    """The expected choice for each open word."""
    estimated: bool = field(init=False, repr=False, compare=False)
    """Some component's quantity or price is only known afterwards."""
    counts_prompt: bool = field(init=False, repr=False, compare=False)
    """The length of the prompt makes a difference to a quote."""
    _snapshot: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        moment = self.effective_at
        midnight = (moment.hour, moment.minute, moment.second, moment.microsecond) == (0, 0, 0, 0)
        text = moment.date().isoformat() if midnight else moment.isoformat().replace("+00:00", "Z")
        object.__setattr__(self, "id", f"{self.book}:{self.sku}@{text}")
        object.__setattr__(self, "defaults", {name: choices[0] for name, choices in self.open.items()})
        estimated = any(component.estimate or component.at_least or component.at_most for component in self.components)
        object.__setattr__(self, "estimated", estimated)
        estimates = [component.estimate for component in self.components if component.estimate is not None]
        object.__setattr__(self, "counts_prompt", any(each.per_character is not None for each in estimates))

    def words(self, attributes: Words) -> Words:
        """The request's words with the provider's choices where it said nothing."""
        if not self.defaults:
            return attributes
        return {**self.defaults, **{name: value for name, value in attributes.items() if value != OPEN}}

    @classmethod
    def read(cls, fields: Fields, book: str, sku: str) -> Price:
        values: dict[str, Any] = {
            "effective_at": fields.instant("effective_at"),
            "currency": fields.text("currency"),
            "source": fields.text("source", choices=SOURCES),
            "source_url": fields.text("source_url"),
            "checked_at": fields.day("checked_at"),
            "certainty": fields.text("certainty", "high", CERTAINTIES),
            "note": fields.text("note", ""),
        }
        currency = values["currency"]
        if currency and not (len(currency) == 3 and currency.isascii() and currency.isupper()):
            fields.problem("currency", f"{currency!r} is not an ISO 4217 code such as USD")
        if (open_words := fields.fields("open")) is not None:
            values["open"] = {name: open_words.texts(name) or ("",) for name in open_words.names()}
        sizes = []
        for text in fields.texts("sizes", optional=True):
            try:
                sizes.append(ImageSize.parse(text))
            except ValueError as error:
                fields.problem("sizes", str(error))
        if (reported := fields.fields("reported")) is not None:
            values["reported"] = {name: reported.amount(name) for name in reported.names()}
            for name in set(values["reported"]) - set(REPORTED_UNITS):
                reported.problem(name, f"is none of {', '.join(REPORTED_UNITS)}")
        components = tuple(Component.read(component) for component in fields.each("components"))
        fields.end()
        for name, choices in values.get("open", {}).items():
            known = _known(components, name)
            for choice in choices:
                if choice not in known:
                    fields.problem(f"open.{name}", f"no component knows {choice!r}")
        return cls(book=book, sku=sku, components=components, sizes=tuple(sizes), **values)

    def snapshot(self) -> Mapping[str, Any]:
        """JSON-ready and complete: ``from_snapshot`` rates exactly as this does, without any file."""
        if not self._snapshot:
            self._snapshot.update(self._described())  # once: every attempt keeps one in the ledger
        return self._snapshot

    def _described(self) -> dict[str, Any]:
        result: dict[str, Any] = {
            "book": self.book,
            "sku": self.sku,
            "effective_at": self.effective_at.isoformat().replace("+00:00", "Z"),
            "currency": self.currency,
            "source": self.source,
            "source_url": self.source_url,
            "checked_at": self.checked_at.isoformat(),
            "certainty": self.certainty,
        }
        if self.note:
            result["note"] = self.note
        if self.open:
            result["open"] = {name: list(choices) for name, choices in self.open.items()}
        if self.sizes:
            result["sizes"] = [str(size) for size in self.sizes]
        if self.reported:
            result["reported"] = {unit: plain(value) for unit, value in self.reported.items()}
        result["components"] = [component.as_dict() for component in self.components]
        return result

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, Any]) -> Price:
        """The price a snapshot holds; PricingError if it is not one."""
        problems: list[Problem] = []
        fields = Fields(snapshot, "snapshot", "", problems)
        price = cls.read(fields, fields.text("book"), fields.text("sku"))
        if problems:
            raise PricingError(problems)
        return price


def utc(moment: datetime) -> datetime:
    """The moment in UTC; a time without a zone could be any moment and is refused with ValueError."""
    if moment.tzinfo is UTC:
        return moment
    if moment.tzinfo is None:
        raise ValueError("a price needs a time with a time zone")
    return moment.astimezone(UTC)
