"""Prices as a library: usage in, exact money out. Knows nothing of HTTP, providers' APIs or the router."""

from pricing.charge import Basis, Charge, LineItem, money, money_text
from pricing.usage import MEGAPIXEL, Expected, ImageSize, Reported, Usage

__all__ = [
    "MEGAPIXEL",
    "Basis",
    "Charge",
    "Expected",
    "ImageSize",
    "LineItem",
    "Reported",
    "Usage",
    "money",
    "money_text",
]
