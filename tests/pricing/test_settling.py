"""Settling: the order of evidence, drift, and what happens without a price."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from pricing import Basis, Expected, Price, Quote, Reported, Usage, load_price_books, quote, settle
from tests.pricing.examples import NOW, image, made, megapixel, price, size, sizes, usd

BOOKS = load_price_books()
TURBO = BOOKS.price("fal", "fal-ai/flux-2/turbo", NOW)
FLUX_PRO = BOOKS.price("bfl", "flux-2-pro", NOW)
GPT = BOOKS.price("openai", "gpt-image-2", NOW)
GROK = BOOKS.price("xai", "grok-imagine-image", NOW)


def reported(amount: str, unit: str) -> Reported:
    return Reported(Decimal(amount), unit)


def quoted(priced: Price, **fields: object) -> Quote:
    return quote(priced, Expected(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("priced", "usage", "basis", "dollars", "drift"),
    [
        # money, in a currency or in the provider's own coin
        (TURBO, made(reported=reported("0.0123456789", "USD")), Basis.REPORTED, "0.012345679", "0.004345679"),
        (FLUX_PRO, made("1920x1080", reported=reported("4.5", "credit")), Basis.REPORTED, "0.045", "0"),
        (GROK, made(reported=reported("200000000", "tick")), Basis.REPORTED, "0.02", "0"),
        (GROK, made(reported=reported("400000000", "tick")), Basis.REPORTED, "0.04", "0.02"),
        # a quantity x the book's unit price
        (TURBO, made("1920x1080", reported=reported("2", "unit")), Basis.REPORTED_QUANTITY, "0.016", "0"),
        (TURBO, made("1920x1080", reported=reported("42.64", "unit")), Basis.REPORTED_QUANTITY, "0.34112", "0.32512"),
        (TURBO, made("1024x1024", "2048x2048", reported=reported("2", "megapixel")), Basis.REPORTED_QUANTITY,
         "0.016", "-0.024"),
        (GPT, Usage(sizes("1024x1024"), tokens={"text_input": 10, "image_output": 1756}), Basis.REPORTED_QUANTITY,
         "0.05273", None),
        # measured
        (TURBO, made("1920x1080"), Basis.MEASURED, "0.016", None),
        (TURBO, made("1920x1080", reported=reported("2", "banana")), Basis.MEASURED, "0.016", None),
        (FLUX_PRO, made("1920x1080", reported=reported("2", "unit")), Basis.MEASURED, "0.045", None),
        (BOOKS.price("replicate", "hardware/nvidia-l40s", NOW), Usage(seconds=Decimal(10)), Basis.MEASURED,
         "0.00975", None),
        # nothing known: the most it can have cost
        (TURBO, Usage(requests=0), Basis.WORST_CASE, "0.032", None),
        (TURBO, Usage(inputs=(None,)), Basis.WORST_CASE, "0.064", None),
        (price({"type": "request", "metric": "request", "unit_price": "0.01"}, image()), Usage(), Basis.WORST_CASE,
         "0.05", None),
        (BOOKS.price("replicate", "hardware/nvidia-l40s", NOW), made(), Basis.WORST_CASE, "0.117", None),
    ],
)  # fmt: skip
def test_best_evidence_first(priced: Price, usage: Usage, basis: Basis, dollars: str, drift: str | None) -> None:
    settled = settle(priced, usage)
    assert settled.basis == settled.charge.basis == basis
    assert settled.charge.total_nanos == usd(dollars)
    assert settled.charge.price_id == priced.id
    assert not settled.unpriced
    said = basis in (Basis.REPORTED, Basis.REPORTED_QUANTITY) and usage.reported is not None
    assert settled.reported_nanos == (usd(dollars) if said else None)
    assert settled.drift_nanos == (None if drift is None else int(Decimal(drift).scaleb(9)))
    assert (settled.computed is None) == (basis is Basis.WORST_CASE)


def test_the_worst_case_is_the_quotes_upper_bound() -> None:
    asked = quoted(TURBO, images=4, size=size("1920x1080"))
    settled = settle(TURBO, Usage(requests=0), asked)
    assert settled.charge == replace(asked.high, basis=Basis.WORST_CASE)
    assert settled.charge.total_nanos == usd("0.064")


def test_measured_pictures_beat_the_quote() -> None:
    asked = quoted(TURBO, images=4, size=size("1920x1080"))
    assert settle(TURBO, made("1024x1024 1024x1024"), asked).charge.total_nanos == usd("0.016")


def test_equal_reports_keep_the_components() -> None:
    usage = made("1024x1024", "512x512", reported=reported("2", "unit"))
    settled = settle(TURBO, usage)
    assert [item.label for item in settled.charge.items] == ["output megapixel", "input megapixel"]
    differing = settle(TURBO, replace(usage, reported=reported("3", "unit"))).charge
    [item] = differing.items
    assert (item.label, item.metric, item.quantity, item.unit_price) == (
        "as reported by the provider", "unit", Decimal(3), Decimal("0.008"),
    )  # fmt: skip


def test_tokens_nobody_counted_are_estimated_from_the_picture_and_the_prompt() -> None:
    asked = quoted(GPT, size=size("1024x1024"), prompt_characters=400, attributes={"quality": "medium"})
    settled = settle(GPT, made(attributes={"quality": "medium"}), asked)
    assert settled.basis is Basis.MEASURED
    assert settled.charge.total_nanos == 1756 * 30_000 + 100 * 5_000


def test_another_currency_is_kept_and_not_compared() -> None:
    settled = settle(TURBO, made(reported=reported("0.01", "EUR")))
    assert (settled.charge.currency, settled.charge.total_nanos) == ("EUR", usd("0.01"))
    assert settled.computed is not None
    assert settled.computed.currency == "USD"
    assert settled.drift_nanos is None


@pytest.mark.parametrize("report", [None, reported("2", "unit"), reported("2", "credit")])
def test_without_a_price_the_amount_is_unknown_not_zero(report: Reported | None) -> None:
    settled = settle(None, made(reported=report))
    assert settled.unpriced
    assert (settled.basis, settled.charge.basis) == (Basis.UNPRICED, Basis.UNPRICED)
    assert (settled.charge.total_nanos, settled.charge.items, settled.computed) == (0, (), None)


def test_without_a_price_reported_money_still_counts() -> None:
    settled = settle(None, made(reported=reported("0.0038", "USD")))
    assert (settled.basis, settled.charge.total_nanos, settled.reported_nanos) == (
        Basis.REPORTED, usd("0.0038"), usd("0.0038"),
    )  # fmt: skip
    assert not settled.unpriced


def test_contract_prices_value_reported_units_too() -> None:
    cheaper = price(megapixel(unit_price="0.006"), reported={"unit": "0.006"}, source="contract")
    assert settle(cheaper, made("1920x1080", reported=reported("2", "unit"))).charge.total_nanos == usd("0.012")
