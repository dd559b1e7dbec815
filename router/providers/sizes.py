"""Saying a size in the words a provider has for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import log

from pricing import ImageSize
from router.types import ImageRequest, Target, Warn


def wanted(request: ImageRequest, target: Target) -> ImageSize | None:
    """The size to ask for; None leaves it to the provider."""
    return request.size or target.default_size


def approximated(size: ImageSize, words: str) -> Warn:
    return Warn("size_approximated", f"This provider has no {size}; {words} was asked for.", "size")


@lru_cache(maxsize=1024)
def nearest_ratio(size: ImageSize, ratios: tuple[str, ...]) -> str:
    """The ratio, of ``16:9``-like words, closest to this size's."""
    shape = log(size.width / size.height)
    return min(ratios, key=lambda ratio: abs(shape - _shape(ratio)))


def _shape(ratio: str) -> float:
    width, _, height = ratio.partition(":")
    return log(float(width) / float(height))


def is_ratio(size: ImageSize, ratio: str) -> bool:
    """Whether the size has this ratio but for rounding to whole pixels."""
    width, _, height = ratio.partition(":")
    return abs(size.width * float(height) - size.height * float(width)) < max(float(width), float(height))


@lru_cache(maxsize=1024)
def nearest_size(size: ImageSize, sizes: tuple[ImageSize, ...]) -> ImageSize:
    """The size closest in shape, then in pixels."""
    shape = log(size.width / size.height)
    return min(
        sizes,
        key=lambda other: (
            round(abs(shape - log(other.width / other.height)), 6),
            abs(log(size.pixels / other.pixels)),
        ),
    )


def aspect_ratio(size: ImageSize, ratios: Iterable[str], warnings: list[Warn]) -> str:
    """The provider's word for the shape of this size, with a warning where it is not exact."""
    ratio = nearest_ratio(size, tuple(ratios))
    if not is_ratio(size, ratio):
        warnings.append(approximated(size, ratio))
    return ratio


def table_entry(size: ImageSize, table: Mapping[ImageSize, str], warnings: list[Warn]) -> str:
    """The provider's word for the nearest of the sizes it makes, with a warning where it is another."""
    made = nearest_size(size, tuple(table))
    if made != size:
        warnings.append(approximated(size, str(made)))
    return table[made]
