"""What other books make of the ledger's usage."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from pricing import Effect, Expected, Metered, Price, PriceBooks, Reported, Usage, diff
from pricing.book import price_books
from tests.pricing.examples import made, megapixel, price, size, usd

MAY = datetime(2026, 5, 1, tzinfo=UTC)
AUGUST = datetime(2026, 8, 1, tzinfo=UTC)


def at(date: str, unit_price: str, **fields: object) -> Price:
    return price(megapixel(unit_price=unit_price), effective_at=date, reported={"unit": unit_price}, **fields)


OLD = price_books([at("2026-01-01", "0.008")])
NEW = price_books([at("2026-01-01", "0.008"), at("2026-07-01", "0.010")])


def row(when: datetime, usage: Usage, sku: str = "model", **fields: object) -> Metered:
    return Metered("test", sku, when, usage, **fields)  # type: ignore[arg-type]


def test_only_rows_after_the_change_are_affected() -> None:
    rows = [row(MAY, made("1920x1080")), row(AUGUST, made("1920x1080")), row(AUGUST, made("512x512"))]
    found = diff(OLD, NEW, rows)
    assert found.added == ("test:model@2026-07-01",)
    assert found.removed == found.edited == ()
    assert found.effects == (Effect("test", "model", "USD", 3, usd("0.04"), usd("0.046"), 0, 0),)
    assert found.effects[0].change_nanos == usd("0.006")
    assert diff(OLD, NEW, rows[:1]).effects == ()


def test_money_the_provider_named_stays_and_its_quantities_are_valued_anew() -> None:
    money = row(AUGUST, made(reported=Reported(Decimal("0.5"), "USD")))
    units = row(AUGUST, made(reported=Reported(Decimal(3), "unit")))
    assert diff(OLD, NEW, [money]).effects == ()
    [effect] = diff(OLD, NEW, [money, units]).effects
    assert (effect.old_nanos, effect.new_nanos) == (usd("0.524"), usd("0.53"))


def test_the_rows_own_snapshot_is_what_was_booked() -> None:
    booked = at("2026-01-01", "0.007")
    [effect] = diff(OLD, OLD, [row(AUGUST, made(), price=booked)]).effects
    assert (effect.old_nanos, effect.new_nanos) == (usd("0.007"), usd("0.008"))


def test_a_row_of_which_nothing_is_known_counts_at_its_worst() -> None:
    expected = Expected(images=2, size=size("1920x1080"))
    [effect] = diff(OLD, NEW, [row(AUGUST, Usage(), expected=expected)]).effects
    assert (effect.old_nanos, effect.new_nanos) == (usd("0.032"), usd("0.04"))


def test_lost_and_gained_prices_show_even_without_money() -> None:
    other = replace(at("2026-01-01", "0.008"), sku="other")
    without = PriceBooks({}, "")
    [lost] = diff(OLD, without, [row(MAY, made()), row(MAY, made(), "never priced")]).effects
    assert (lost.old_nanos, lost.new_nanos, lost.old_unpriced, lost.new_unpriced) == (usd("0.008"), 0, 0, 1)
    [gained] = diff(OLD, price_books([*OLD, other]), [row(MAY, Usage(), "other")]).effects
    assert (gained.old_unpriced, gained.new_unpriced, gained.old_nanos) == (1, 0, 0)


def test_history_edited_in_place_is_named() -> None:
    found = diff(OLD, price_books([at("2026-01-01", "0.009")]), [])
    assert (found.edited, found.added, found.removed) == (("test:model@2026-01-01",), (), ())
    assert diff(NEW, OLD, []).removed == ("test:model@2026-07-01",)


def test_a_change_of_currency_moves_the_money() -> None:
    euros = price_books([at("2026-01-01", "0.007", currency="EUR")])
    dollars, moved = diff(OLD, euros, [row(MAY, made())]).effects
    assert (dollars.currency, dollars.old_nanos, dollars.new_nanos) == ("USD", usd("0.008"), 0)
    assert (moved.currency, moved.old_nanos, moved.new_nanos) == ("EUR", 0, usd("0.007"))


def test_the_greatest_change_comes_first() -> None:
    def both(first: str, second: str) -> PriceBooks:
        return price_books([at("2026-01-01", first), replace(at("2026-01-01", second), sku="another")])

    rows = [row(MAY, made()), row(MAY, made(), "another")]
    found = diff(both("0.008", "0.008"), both("0.007", "0.010"), rows)
    assert [effect.sku for effect in found.effects] == ["another", "model"]
