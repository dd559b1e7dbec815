"""What a generation consumes: quantities only. No prices, no currency, no providers' field names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache

MEGAPIXEL = 1_048_576
"""Pixels in the megapixel that image hosts bill (1024 x 1024); a price component may state another."""


_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True, order=True)
class ImageSize:
    """Width and height of one picture, in pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, text: str) -> ImageSize:
        """Read ``WIDTHxHEIGHT`` (ASCII digits, lower-case x, no spaces or leading zeros), else ValueError."""
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:40]!r} is not WIDTHxHEIGHT")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Reported:
    """What the provider itself said about its bill, in the unit it said it in.

    ``unit`` is an ISO 4217 code for money (``USD``), or a quantity's name that the price book can turn into money
    (``credit``, ``tick``, ``megapixel``, ``image``, ``second``, ``unit`` for a catalogue unit).
    """

    amount: Decimal
    unit: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What one attempt really consumed, measured or reported.

    ``inputs`` holds None for a picture whose size could not be read. ``tokens`` is keyed by ``text_input``,
    ``cached_text_input``, ``image_input``, ``cached_image_input``, ``image_output``, ``text_output``.
    ``attributes`` are the words a price may depend on (``quality``, ``resolution``, ``speed``, ``size``).
    """

    outputs: tuple[ImageSize, ...] = ()
    inputs: tuple[ImageSize | None, ...] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)
    requests: int = 1
    seconds: Decimal | None = None
    steps: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    reported: Reported | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What a request is going to consume, as far as the request tells: the basis of a quote.

    ``size`` is None when the model chooses. ``prompt_characters`` counts code points.
    """

    images: int = 1
    size: ImageSize | None = None
    inputs: tuple[ImageSize | None, ...] = ()
    prompt_characters: int = 0
    requests: int = 1
    steps: int | None = None
    partial_images: int = 0
    attributes: Mapping[str, str] = field(default_factory=dict)
