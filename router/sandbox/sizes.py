"""Arithmetic of picture sizes that several emulators need."""

from __future__ import annotations

import math

from router.sandbox.pictures import Size

MEGAPIXEL = 1_048_576  # 1024 x 1024, the unit of the FLUX providers


def megapixels(size: Size, cap: int | None = None) -> int:
    """Whole megapixels of one picture, rounded up, at least 1."""
    count = max(1, -(-(size[0] * size[1]) // MEGAPIXEL))
    return count if cap is None else min(count, cap)


def from_ratio(ratio: str, pixels: int, multiple: int, separator: str = ":") -> Size:
    """The largest size of about this ratio with at most ``pixels``, sides multiples of ``multiple``.

    Raises ValueError if ``ratio`` is none.
    """
    first, _, second = ratio.partition(separator)
    across, down = float(first), float(second)
    if not (0 < across < 100 and 0 < down < 100):
        raise ValueError(f"no ratio: {ratio}")
    width = math.sqrt(pixels * across / down)
    sides = (int(side + 1e-6) // multiple * multiple for side in (width, width * down / across))
    return max(multiple, next(sides)), max(multiple, next(sides))


def shrunk(size: Size, pixels: int, multiple: int) -> Size:
    """``size``, or if it has more than ``pixels`` the largest size of its shape that has not."""
    width, height = size
    if width * height <= pixels:
        return size
    return from_ratio(f"{width / height}:1", pixels, multiple)


def text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
