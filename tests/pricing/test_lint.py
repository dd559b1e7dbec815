"""Checking: slips of the unit are noticed, stale prices are named, good books are left in peace."""

from __future__ import annotations

import shutil
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pricing import Price, Problem, check_price_books, load_price_books
from pricing.book import PACKAGED
from pricing.lint import suspicious

TODAY = date(2026, 11, 21)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGED, tmp_path / "books"))


def warnings(directory: Path, today: date | None = None) -> list[Problem]:
    found = check_price_books(directory, today)
    assert all(problem.severity == "warning" for problem in found), found
    return found


def change(books: Path, book: str, old: str, new: str) -> None:
    path = books / f"{book}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("book", "old", "new", "sku"),
    [
        ("fal", "unit_price: 0.008,", "unit_price: 0.8,", "fal-ai/flux-2/turbo@2025-12-29"),  # cents for dollars
        ("bfl", "unit_price: 0.04}", "unit_price: 4}", "flux-pro-1.1@2026-01-01"),  # credits for dollars
        ("stability", "unit_price: 0.065}", "unit_price: 0.00065}", "sd3.5-large@2026-01-01"),  # twice divided
        ("openai", "unit_price: 30.00\n            per: 1000000", "unit_price: 30.00\n            per: 1000",
         "gpt-image-2@2026-04-21"),
        ("gpu-fast", "unit_price: 0.012", "unit_price: 12", "flux.2-dev-turbo@2026-01-01"),
    ],
)  # fmt: skip
def test_a_slip_of_the_unit_is_noticed(books: Path, book: str, old: str, new: str, sku: str) -> None:
    assert warnings(books) == []
    change(books, book, old, new)
    assert (f"{book}.yaml", sku) in [(problem.file, problem.key) for problem in warnings(books)]


def scaled(right: Price, factor: int) -> Price:
    """The price with every amount of money times the factor."""

    def walk(tree: Any) -> Any:
        if isinstance(tree, list):
            return [walk(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        money = {"unit_price", "token_price", "plus"} | ({"at_least", "at_most"} if "metric" in tree else set())
        return {k: format(Decimal(v) * factor, "f") if k in money else walk(v) for k, v in tree.items()}

    return Price.from_snapshot(walk(right.snapshot()))


def test_most_single_slips_are_noticed() -> None:
    """Every fourth price in turn, a hundred and a thousand times too dear."""
    prices = list(load_price_books())
    caught = {100: 0, 1000: 0}
    for index in range(0, len(prices), 4):
        right = prices[index]
        for factor in caught:
            wrong = scaled(right, factor)
            found = suspicious([*prices[:index], wrong, *prices[index + 1 :]])
            caught[factor] += any(f"{right.book}:{problem.key}" == right.id for problem in found)
    count = len(range(0, len(prices), 4))
    assert caught[1000] == count
    assert caught[100] >= 0.8 * count


def test_a_jump_from_one_price_to_the_next_is_noticed(books: Path) -> None:
    change(books, "bfl", "unit_price: 0.06,", "unit_price: 0.009,")
    [found] = warnings(books)
    assert found.key == "flux-2-flex@2026-01-01"
    assert "goes from 0.009 to 0.05" in found.message


def test_stale_prices_and_checks_from_the_future(books: Path) -> None:
    assert warnings(books, TODAY) == []
    stale = warnings(books, TODAY + timedelta(days=44))
    assert {problem.file for problem in stale} == {"replicate.yaml"}  # read on 2026-10-07
    assert stale[0].message == "was last checked 89 days ago, on 2026-10-07"
    assert len(warnings(books, TODAY + timedelta(days=45))) > 100
    change(books, "xai", "checked_at: 2026-11-20", "checked_at: 2026-11-22")
    assert [problem.message for problem in warnings(books, TODAY)] == ["checked_at 2026-11-22 lies in the future"] * 4


def test_errors_come_first_and_alone(books: Path) -> None:
    change(books, "xai", "        source_url: https://docs.x.ai/\n", "")
    change(books, "fal", "unit_price: 0.008,", "unit_price: 8,")
    found = check_price_books(books)
    assert {(problem.file, problem.severity) for problem in found} == {("xai.yaml", "error")}
    assert found[0].message == "is missing"
