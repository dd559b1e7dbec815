"""Prices as a library: usage in, exact money out. Knows nothing of HTTP, providers' APIs or the router."""

from pricing.book import PriceBooks, UnpricedError, load_price_books
from pricing.charge import Basis, Charge, LineItem, money, money_text
from pricing.document import PricingError, Problem
from pricing.price import Component, Price
from pricing.quoting import Quote, quote
from pricing.rating import rate
from pricing.settling import Settlement, settle
from pricing.usage import MEGAPIXEL, Expected, ImageSize, Reported, Usage

__all__ = [
    "MEGAPIXEL",
    "Basis",
    "Charge",
    "Component",
    "Expected",
    "ImageSize",
    "LineItem",
    "Price",
    "PriceBooks",
    "PricingError",
    "Problem",
    "Quote",
    "Reported",
    "Settlement",
    "UnpricedError",
    "Usage",
    "load_price_books",
    "money",
    "money_text",
    "quote",
    "rate",
    "settle",
]
