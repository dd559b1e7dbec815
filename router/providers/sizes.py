"""Saying a size in the words a provider has for it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import log
from typing import Any

from pricing import ImageSize
from router.types import ImageRequest, Target, Warn, distance

RATIOS = ("21:9", "16:9", "3:2", "4:3", "5:4", "1:1", "4:5", "3:4", "2:3", "9:16", "9:21")
"""The shapes that FLUX hosts have words for."""


def put(
    fields: dict[str, Any],
    size: ImageSize | None,
    words: str,
    warnings: list[Warn],
    ratios: tuple[str, ...] = RATIOS,
) -> None:
    """Write the size into a call as the provider has it (the adapters' setting ``size_as``): ``size`` WxH text,
    ``image_size`` an object, ``image_size_text`` WxH text, ``width_height`` two fields, ``aspect_ratio``, or none.
    """
    if size is None:
        return
    match words:
        case "size":
            fields["size"] = str(size)
        case "image_size":
            fields["image_size"] = {"width": size.width, "height": size.height}
        case "image_size_text":
            fields["image_size"] = str(size)
        case "width_height":
            fields |= {"width": size.width, "height": size.height}
        case "aspect_ratio" if "aspect_ratio" not in fields:  # the client's own word is more exact
            fields["aspect_ratio"] = aspect_ratio(size, ratios, warnings)


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
    return min(sizes, key=lambda other: distance(size, other))


def aspect_ratio(size: ImageSize, ratios: Iterable[str], warnings: list[Warn]) -> str:
    """The provider's word for the shape of this size, with a warning where it is not exact."""
    ratio = nearest_ratio(size, tuple(ratios))
    if not is_ratio(size, ratio):
        warnings.append(approximated(size, ratio))
    return ratio
