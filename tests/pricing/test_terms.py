"""The operator's layer: list and effective cost apart, draws that never exceed, conversions at the dated rate."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing import Basis, NoRateError, PricingError, Terms, load_terms, money_text, rate
from tests.pricing.examples import made, megapixel, price, usd

TEXT = """
discounts:
  - {name: launch, book: fal, skus: "fal-ai/flux-2/*", percent: 50, effective_at: 2026-01-01, until: 2026-02-01}
  - {name: contract, book: fal, percent: 12.5, effective_at: 2026-01-01}
commitments:
  - {name: small, book: fal, amount: 0.01, currency: USD, effective_at: 2026-03-01, until: 2026-04-01}
  - {name: large, book: "*", amount: 1000, paid: 900, currency: USD, effective_at: 2026-03-01, until: 2026-04-01}
markups:
  - {name: studio, payer: studio-*, book: "*", percent: 20, effective_at: 2026-01-01}
exchange_rates:
  - {from: USD, to: EUR, rate: 0.9, effective_at: 2026-01-01, source: ECB}
  - {from: USD, to: EUR, rate: 0.8, effective_at: 2026-06-01, source: ECB}
  - {from: GBP, to: USD, rate: 1.25, effective_at: 2026-01-01, source: ECB}
"""
CHARGE = rate(price(megapixel(), megapixel("input")), made("1920x1080", "512x512"))  # 0.016 + 0.008
SKU = "fal-ai/flux-2/turbo"


@pytest.fixture
def terms(tmp_path: Path) -> Terms:
    path = tmp_path / "terms.yaml"
    path.write_text(TEXT)
    return load_terms(path)


def day(month: int, number: int = 15) -> datetime:
    return datetime(2026, month, number, tzinfo=UTC)


def test_the_first_discount_that_covers_holds_line_by_line(terms: Terms) -> None:
    january = terms.apply(CHARGE, "fal", SKU, day(1))
    assert january.list == CHARGE
    assert [money_text(item.amount_nanos) for item in january.contracted.items] == ["0.008", "0.004"]
    assert [item.unit_price for item in january.contracted.items] == [Decimal("0.004")] * 2
    assert terms.apply(CHARGE, "fal", SKU, datetime(2026, 2, 1, tzinfo=UTC)).contracted.total_nanos == usd("0.021")
    assert terms.apply(CHARGE, "fal", "fal-ai/other", day(1)).contracted.total_nanos == usd("0.021")
    assert terms.apply(CHARGE, "openai", "gpt-image-2", day(1)).contracted == CHARGE
    assert terms.apply(CHARGE, "fal", SKU, datetime(2025, 12, 31, tzinfo=UTC)).contracted == CHARGE


def test_money_the_provider_named_is_not_discounted_again(terms: Terms) -> None:
    said = replace(CHARGE, basis=Basis.REPORTED)
    assert terms.apply(said, "fal", SKU, day(1)).contracted == said
    counted = replace(CHARGE, basis=Basis.REPORTED_QUANTITY)
    assert terms.apply(counted, "fal", SKU, day(1)).contracted.total_nanos == usd("0.012")


def test_credit_is_drawn_in_order_and_valued_at_what_was_paid(terms: Terms) -> None:
    cost = terms.apply(CHARGE, "fal", SKU, day(3))  # contracted 0.021
    assert [(draw.commitment, draw.nanos, draw.paid_nanos) for draw in cost.draws] == [
        ("small", usd("0.01"), usd("0.01")),
        ("large", usd("0.011"), usd("0.0099")),
    ]
    assert cost.billed_nanos == 0
    assert cost.effective_nanos == usd("0.0199")


def test_credit_runs_out(terms: Terms) -> None:
    drawn = {"small": usd("0.01"), "large": usd("999.999")}
    cost = terms.apply(CHARGE, "fal", SKU, day(3), drawn=drawn)
    assert [draw.nanos for draw in cost.draws] == [usd("0.001")]
    assert cost.billed_nanos == usd("0.020")
    assert cost.effective_nanos == usd("0.0209")
    overdrawn = terms.apply(CHARGE, "fal", SKU, day(3), drawn={"small": usd("2"), "large": usd("1001")})
    assert (overdrawn.draws, overdrawn.effective_nanos) == ((), usd("0.021"))
    assert terms.apply(CHARGE, "fal", SKU, day(4)).draws == ()


def test_credit_is_for_its_own_currency(terms: Terms) -> None:
    assert terms.apply(replace(CHARGE, currency="EUR"), "fal", SKU, day(3)).draws == ()


def test_markup_is_for_whom_it_names(terms: Terms) -> None:
    assert terms.apply(CHARGE, "fal", SKU, day(5), payer="studio-a").charged.total_nanos == usd("0.0252")
    assert terms.apply(CHARGE, "fal", SKU, day(5), payer="lab").charged.total_nanos == usd("0.021")
    assert terms.apply(CHARGE, "fal", SKU, day(5)).charged.total_nanos == usd("0.021")


def test_no_terms_change_nothing() -> None:
    cost = Terms().apply(CHARGE, "fal", SKU, day(1))
    assert cost.list == cost.contracted == cost.charged == CHARGE
    assert cost.billed_nanos == cost.effective_nanos == CHARGE.total_nanos


def test_conversion_at_the_rate_in_force(terms: Terms) -> None:
    assert terms.convert(usd("1"), "USD", "EUR", day(5)) == usd("0.9")
    assert terms.convert(usd("1"), "USD", "EUR", datetime(2026, 6, 1, tzinfo=UTC)) == usd("0.8")
    assert terms.convert(usd("1"), "EUR", "USD", day(7)) == usd("1.25")
    assert terms.convert(usd("1"), "EUR", "USD", day(5)) == 1_111_111_111
    assert terms.convert(usd("1"), "USD", "GBP", day(5)) == usd("0.8")
    assert terms.convert(7, "USD", "USD", day(5)) == 7
    with pytest.raises(NoRateError, match="no exchange rate from EUR to GBP"):
        terms.convert(1, "EUR", "GBP", day(5))
    with pytest.raises(NoRateError):
        terms.convert(1, "USD", "EUR", datetime(2025, 12, 31, tzinfo=UTC))
    with pytest.raises(ValueError, match="time zone"):
        terms.convert(1, "USD", "EUR", datetime(2026, 5, 1))  # noqa: DTZ001


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 10**12),
    st.integers(0, 10**12),
    st.decimals(0, 100, places=3),
    st.integers(1, 4000),
    st.integers(1, 4000),
)
def test_draws_never_exceed_and_lines_round_once(
    amount: int, used: int, percent: Decimal, width: int, height: int
) -> None:
    text = f"""
discounts:
  - {{name: d, book: fal, percent: {percent}, effective_at: 2026-01-01}}
commitments:
  - {{name: c, book: fal, amount: {Decimal(amount).scaleb(-9):f}, paid: 0, currency: USD, effective_at: 2026-01-01}}
"""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "terms.yaml"
        path.write_text(text)
        terms = load_terms(path)
    charge = rate(price(megapixel(unit_price="0.0081")), made(f"{width}x{height} 512x512"))
    cost = terms.apply(charge, "fal", SKU, day(1), drawn={"c": used})
    taken = sum(draw.nanos for draw in cost.draws)
    assert taken == max(0, min(cost.contracted.total_nanos, amount - used))
    assert cost.billed_nanos == cost.contracted.total_nanos - taken == cost.effective_nanos
    for listed, item in zip(charge.items, cost.contracted.items, strict=True):
        exact = Fraction(listed.amount_nanos) * (100 - Fraction(percent)) / 100
        assert abs(item.amount_nanos - exact) <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("discounts:\n  - {name: a, book: fal, percent: 101, effective_at: 2026-01-01}", "discounts[0].percent", "100"),
        ("discounts:\n  - {name: a, book: fal, percent: 10}", "discounts[0].effective_at", "is missing"),
        ("discounts:\n  - {name: a, book: fal, percent: 10, effective_at: 2026-01-01, payer: x}", "discounts[0].payer",
         "not a known field"),
        ("discounts:\n  - {book: fal, percent: 10, effective_at: 2026-02-01, until: 2026-02-01}", "discounts[0].until",
         "after effective_at"),
        ("commitments:\n  - {name: a, book: fal, amount: 0, currency: USD, effective_at: 2026-01-01}",
         "commitments[0].amount", "more than 0"),
        ("exchange_rates:\n  - {from: USD, to: EUR, rate: 0, effective_at: 2026-01-01, source: x}",
         "exchange_rates[0].rate", "more than 0"),
        ("exchange_rates:\n  - {from: USD, to: EUR, rate: 0.9, effective_at: 2026-01-01}", "exchange_rates[0].source",
         "is missing"),
        ("rebates: []", "rebates", "not a known field"),
        ("discounts: 5", "discounts", "must be a list"),
    ],
)  # fmt: skip
def test_terms_are_read_strictly(tmp_path: Path, text: str, key: str, message: str) -> None:
    path = tmp_path / "terms.yaml"
    path.write_text(text)
    with pytest.raises(PricingError) as caught:
        load_terms(path)
    assert any(problem.key == key and message in problem.message for problem in caught.value.problems)
