"""How many tokens OpenAI's image models spend on one picture, known before the call.

The formula is a community finding (openai.md of 2026-11-20): times 30 USD per million it gives exactly all 30 prices
fal publishes for gpt-image-2.5, and 17 of the 18 for gpt-image-2 when rounded up to a tenth of a cent.
"""

from __future__ import annotations

from pricing.usage import ImageSize


def image_output_tokens(q: int, size: ImageSize) -> int:
    """Output tokens of one picture. ``q`` is the model's figure for the quality: the patches of its longer side."""
    short, long = sorted((size.width, size.height))
    rows = (2 * q * short + long) // (2 * long)  # q scaled to the shorter side, rounded to the nearest
    return -(-q * rows * (2_000_000 + size.pixels) // 4_000_000)
