"""Prices as a library: usage in, exact money out. Knows nothing of HTTP, providers' APIs or the router."""

from pricing.book import PriceBooks, UnpricedError, load_price_books
from pricing.charge import Basis, Charge, LineItem, money, money_text
from pricing.comparing import Difference, Effect, Metered, diff
from pricing.component import Component
from pricing.document import PricingError, Problem
from pricing.lint import check_price_books
from pricing.price import Price
from pricing.quoting import Quote, quote
from pricing.rating import rate
from pricing.settling import Settlement, settle
from pricing.terms import Cost, NoRateError, Terms, load_terms
from pricing.usage import MEGAPIXEL, Expected, ImageSize, Reported, Usage

__all__ = [
    "MEGAPIXEL",
    "Basis",
    "Charge",
    "Component",
    "Cost",
    "Difference",
    "Effect",
    "Expected",
    "ImageSize",
    "LineItem",
    "Metered",
    "NoRateError",
    "Price",
    "PriceBooks",
    "PricingError",
    "Problem",
    "Quote",
    "Reported",
    "Settlement",
    "Terms",
    "UnpricedError",
    "Usage",
    "check_price_books",
    "diff",
    "load_price_books",
    "load_terms",
    "money",
    "money_text",
    "quote",
    "rate",
    "settle",
]
