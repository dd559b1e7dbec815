"""The strict reader: what is written is what is read, and everything wrong is said at once, with its place."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from pricing import Price, PriceBooks, PricingError, UnpricedError, Usage, load_price_books, rate
from tests.pricing.examples import HEAD, made, megapixel, usd

GOOD = """\
book: acme
title: Acme
models:
  - skus: [model, model/edit]
    prices:
      - effective_at: 2026-01-01
        source: official
        source_url: https://example.com/prices
        checked_at: 2026-11-20
        currency: USD
        components:
          - type: output
            metric: megapixel
            unit_price: 0.008
            megapixel: 1048576
            rounding: up_per_image
"""
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def load(tmp_path: Path, text: str = GOOD, name: str = "acme.yaml") -> PriceBooks:
    (tmp_path / name).write_text(textwrap.dedent(text))
    return load_price_books(tmp_path)


def problems(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    with pytest.raises(PricingError) as caught:
        load(tmp_path, text)
    assert all(problem.file == "acme.yaml" for problem in caught.value.problems)
    assert all(problem.severity == "error" for problem in caught.value.problems)
    return [(problem.key, problem.message) for problem in caught.value.problems]


def test_a_good_book_loads(tmp_path: Path) -> None:
    books = load(tmp_path)
    assert books.names == ("acme",)
    assert books.skus("acme") == ("model", "model/edit")
    assert [entry.id for entry in books] == ["acme:model@2026-01-01", "acme:model/edit@2026-01-01"]
    found = books.price("acme", "model/edit", NOON)
    assert found.components[0].rates[0].unit_price == Decimal("0.008")
    assert found.checked_at.isoformat() == "2026-11-20"


COMPONENT = "model.prices[0].components[0]"


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        # numbers
        ("unit_price: 0.008", "unit_price: 8e-3", f"{COMPONENT}.unit_price", "not a plain decimal"),
        ("unit_price: 0.008", "unit_price: .008", f"{COMPONENT}.unit_price", "not a plain decimal"),
        ("unit_price: 0.008", "unit_price: 0,008", f"{COMPONENT}.unit_price", "not a plain decimal"),
        ("unit_price: 0.008", "unit_price: -0.008", f"{COMPONENT}.unit_price", "not a plain decimal"),
        ("unit_price: 0.008", "unit_price: $0.008", f"{COMPONENT}.unit_price", "not a plain decimal"),
        ("unit_price: 0.008", "unit_price: .nan", f"{COMPONENT}.unit_price", "not a plain decimal"),
        ("unit_price: 0.008", "unit_price:", f"{COMPONENT}.unit_price", "is missing"),
        ("unit_price: 0.008", "unit_price: [0.008]", f"{COMPONENT}.unit_price", "must be plain text"),
        ("            unit_price: 0.008\n", "", f"{COMPONENT}.unit_price", "is missing"),
        # units
        ("            megapixel: 1048576\n", "", f"{COMPONENT}.megapixel", "must be 1048576 or 1000000"),
        ("1048576", "1_048_576", f"{COMPONENT}.megapixel", "not a plain decimal"),
        ("1048576", "1024", f"{COMPONENT}.megapixel", "must be 1048576 or 1000000"),
        ("            rounding: up_per_image\n", "", f"{COMPONENT}.rounding", "is missing"),
        ("up_per_image", "up", f"{COMPONENT}.rounding", "'up' is none of up_per_image, up_per_request, exact"),
        ("metric: megapixel", "metric: megapixels", f"{COMPONENT}.metric", "is none of megapixel, pixel, image"),
        ("type: output", "type: outputs", f"{COMPONENT}.type", "is none of input, output, request"),
        ("type: output", "type: input", COMPONENT, "needs cap, fixed or assume"),
        ("rounding: up_per_image", "rounding: up_per_image\n            cap: 0", f"{COMPONENT}.cap", "more than 0"),
        ("rounding: up_per_image", "rounding: exact\n            cap: 1.5", f"{COMPONENT}.cap", "a whole number"),
        ("rounding: up_per_image", "rounding: exact\n            up_to: 0", f"{COMPONENT}.up_to", "more than above"),
        ("rounding: up_per_image", "rounding: exact\n            fixed: 0", f"{COMPONENT}.fixed", "more than 0"),
        (
            "rounding: up_per_image",
            "rounding: exact\n            at_least: 0.01",
            f"{COMPONENT}.at_least",
            "wrong side",
        ),
        ("rounding: up_per_image", "rounding: exact\n            at_most: 0.001", f"{COMPONENT}.at_most", "wrong side"),
        (
            "rounding: up_per_image",
            "rounding: exact\n            steps: {default: 0}",
            f"{COMPONENT}.steps",
            "at least 1",
        ),
        # keys
        ("title: Acme", "title: Acme\ncolour: red", "colour", "is not a known field"),
        ("type: output", "type: output\n            on: true", f"{COMPONENT}.on", "is not a known field"),
        ("type: output", "type: output\n            tile: 512x512", f"{COMPONENT}.tile", "is not a known field"),
        ("unit_price: 0.008", "unit_price: 0.008\n            unit_price: 0.009", "line 15", "is there twice"),
        ("unit_price: 0.008", "? [a, b]\n            : 0.009", "line 14", "a key must be plain text"),
        ("book: acme", "book: other", "book", "must be the file's name"),
        ("book: acme\n", "", "book", "is missing"),
        ("[model, model/edit]", "[model, model]", "models[0].skus", "names something twice"),
        ("[model, model/edit]", "[]", "models[0].skus", "must be a list of names"),
        ("[model, model/edit]", "model", "models[0].skus", "must be a list of names"),
        # provenance
        ("        source: official\n", "", "model.prices[0].source", "is missing"),
        ("source: official", "source: hearsay", "model.prices[0].source", "is none of official, secondary"),
        ("        source_url: https://example.com/prices\n", "", "model.prices[0].source_url", "is missing"),
        ("        checked_at: 2026-11-20\n", "", "model.prices[0].checked_at", "is missing"),
        ("checked_at: 2026-11-20", "checked_at: 2026-11-31", "model.prices[0].checked_at", "is not a date"),
        ("checked_at: 2026-11-20", "checked_at: 20.11.2026", "model.prices[0].checked_at", "is not a date"),
        ("effective_at: 2026-01-01", "effective_at:", "model.prices[0].effective_at", "is missing"),
        ("effective_at: 2026-01-01", "effective_at: 2026-01-01T00:00:00", "model.prices[0].effective_at", "neither"),
        ("effective_at: 2026-01-01", "effective_at: 2026-13-01", "model.prices[0].effective_at", "neither"),
        ("effective_at: 2026-01-01", "effective_at: soon", "model.prices[0].effective_at", "neither"),
        ("        currency: USD\n", "", "model.prices[0].currency", "is missing"),
        ("currency: USD", "currency: dollars", "model.prices[0].currency", "not an ISO 4217 code"),
        ("currency: USD", "currency: USD\n        certainty: sure", "model.prices[0].certainty", "is none of high"),
        ("currency: USD", "currency: USD\n        reported: {coin: 1}", "model.prices[0].reported.coin", "is none of"),
        ("currency: USD", "currency: USD\n        sizes: [1024]", "model.prices[0].sizes", "is not WIDTHxHEIGHT"),
        ("currency: USD", "currency: USD\n        open: {quality: [hd]}", "model.prices[0].open.quality", "knows 'hd'"),
        # structure
        ("        components:\n", "        components: []\n        x:\n", "model.prices[0].components", "at least one"),
        ("    prices:\n", "    prices: none\n    x:\n", "model.prices", "at least one"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, old: str, new: str, key: str, message: str) -> None:
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new, 1))
    assert any(place == key and message in said for place, said in found), found


IMAGE_HEAD = GOOD[: GOOD.index("          - type: output")]


TOKEN = "type: output, metric: token, unit_price: 30"
Q = "estimate: {q: {low: 1}}"
LOW = "{unit_price: 1, when: {quality: low}}"


@pytest.mark.parametrize(
    ("component", "key", "message"),
    [
        (f"{{{TOKEN}, token: image_output, {Q}}}", ".per", "1000000"),
        (f"{{{TOKEN}, token: image_output, per: 100, {Q}}}", ".per",
         "1, 1000 or 1000000"),
        (f"{{{TOKEN}, per: 1, {Q}}}", ".token", "is missing"),
        (f"{{{TOKEN}, token: image_output, per: 1}}", ".estimate", "is missing"),
        (f"{{{TOKEN}, token: image_input, per: 1, {Q}}}",
         ".estimate.q", "pictures made"),
        (f"{{{TOKEN}, token: image_output, per: 1, estimate: {{}}}}", ".estimate",
         "must say per_image"),
        (f"{{{TOKEN}, token: image_output, per: 1, estimate: {{q: {{low: x}}}}}}",
         ".estimate.q", "whole number"),
        (f"{{{TOKEN}, token: image_output, per: 1, estimate: {{per_image: [{{quantity: 5, at_least: 6}}]}}}}",
         ".estimate.per_image[0].quantity", "ascending"),
        (f"{{{TOKEN}, token: image_output, per: 1, estimate: {{per_character: {{quantity: 1}}}}}}", ".estimate",
         "pictures are what it counts"),
        ("{type: output, metric: tile, unit_price: 0.1, tile: 512}", ".tile", "is not WIDTHxHEIGHT"),
        ("{type: request, metric: second, unit_price: 0.1}", ".estimate", "is missing"),
        ("{type: output, metric: step, unit_price: 0.1}", ".steps", "is missing"),
        ("{type: output, metric: tile, unit_price: 0.1}", ".tile", "is missing"),
        ("{type: input, metric: tile, unit_price: 0.1, tile: 512x512}", ".assume", "is missing"),
        ("{type: input, metric: pixel, unit_price: 0.1}", "", "needs cap, fixed or assume"),
        ("{type: output, metric: image, unit_price: 0.1, rates: [{unit_price: 1}]}", ".unit_price", "beside rates"),
        ("{type: output, metric: image, rates: []}", ".rates", "at least one"),
        ("{type: output, metric: image, rates: [{unit_price: 1}, {unit_price: 2, when: {quality: low}}]}",
         ".rates[1].when", "never comes to hold"),
        (f"{{type: output, metric: image, rates: [{LOW}, {LOW}]}}", ".rates[1].when", "never comes to hold"),
        ("{type: output, metric: image, at_most: 3, rates: [{unit_price: 1, when: {quality: low}}]}", ".at_most",
         "single unit_price"),
        ("{type: request, metric: request, rates: [{unit_price: 1, when: {size: 512x512}}]}", ".rates[0].when",
         "only hold words"),
        ("{type: output, metric: image, unit_price: 1, when: {max_pixels: 9}}", ".when", "only hold words"),
        ("{type: output, metric: image, rates: [{unit_price: 1, when: {size: 512}}]}", ".rates[0].when.size",
         "is not WIDTHxHEIGHT"),
        ("{type: output, metric: image, rates: [{unit_price: 1, when: {quality: {a: b}}}]}", ".rates[0].when.quality",
         "plain text"),
        ("{type: output, metric: image, unit_price: 1, formula: {token_price: 1, round_up_to: 0}}", ".formula.q",
         "is missing"),
        ("{type: output, metric: image, unit_price: 1, formula: {q: {low: 1}, token_price: 1, round_up_to: 0}}",
         ".formula.round_up_to", "more than 0"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_component_is_named(tmp_path: Path, component: str, key: str, message: str) -> None:
    found = problems(tmp_path, f"{IMAGE_HEAD}          - {component}\n")
    assert any(place == COMPONENT + key and message in said for place, said in found), found


def test_all_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(GOOD.replace("book: acme", "book: first").replace("0.008", "free"))
    (tmp_path / "second.yaml").write_text(GOOD.replace("currency: USD", "currency: usd"))
    (tmp_path / "third.yaml").write_text("a: [")
    (tmp_path / "fourth.yaml").write_text("")
    (tmp_path / "fifth.yaml").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "sixth.yaml").write_text("- a list")
    (tmp_path / "seventh.yaml").write_text("&a [*a]")
    (tmp_path / "eighth.yaml").write_text("book: eighth\n---\nbook: another")
    with pytest.raises(PricingError) as caught:
        load_price_books(tmp_path)
    files = {problem.file for problem in caught.value.problems}
    assert files == {path.name for path in tmp_path.iterdir()}
    assert len(files) == 8
    assert "second.yaml: book: 'acme' must be the file's name, 'second'" in str(caught.value)
    assert "fourth.yaml: is empty" in str(caught.value)


def test_no_books_are_a_problem_too(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(PricingError, match="has no price books"):
            load_price_books(directory)


def test_two_prices_from_the_same_moment_are_refused(tmp_path: Path) -> None:
    entry = GOOD[GOOD.index("      - effective_at") :]
    [(key, message)] = [*{*problems(tmp_path, GOOD + entry)}][:1]
    assert key == "model.prices[1].effective_at"
    assert "two prices from this moment on" in message
    again = GOOD + GOOD[GOOD.index("  - skus") :].replace("[model, model/edit]", "[other, model]")
    assert ("other.prices[0].effective_at", "model has two prices from this moment on") in problems(tmp_path, again)


def test_text_is_text_whatever_yaml_thinks_of_it(tmp_path: Path) -> None:
    text = GOOD.replace("metric: megapixel", "metric: image").replace("            megapixel: 1048576\n", "")
    text = text.replace("            rounding: up_per_image\n", "")
    rows = ("unit_price: 0.1, when: {hd: on}", "unit_price: 010.5, when: {hd: 'no'}", "unit_price: 1, when: {hd: 1:30}")
    rates = "rates: [" + ", ".join(f"{{{row}}}" for row in rows) + "]"
    assert problems(tmp_path, text.replace("unit_price: 0.008", rates)) == [
        (f"{COMPONENT}.rates[1].unit_price", "'010.5' is not a plain decimal number such as 0.008")
    ]
    booked = load(tmp_path, text.replace("unit_price: 0.008", rates.replace("010.5", "10.5"))).price(
        "acme", "model", NOON
    )
    for word, dollars in (("on", "0.1"), ("no", "10.5"), ("1:30", "1")):
        assert rate(booked, made(attributes={"hd": word})).total_nanos == usd(dollars)


def test_decimals_keep_every_digit(tmp_path: Path) -> None:
    digits = "0.1234567890123456789012345678901234567890"
    booked = load(tmp_path, GOOD.replace("0.008", digits)).price("acme", "model", NOON)
    assert booked.components[0].rates[0].unit_price == Decimal(digits)
    assert booked.snapshot()["components"][0]["unit_price"] == digits.rstrip("0")


# --- dates --------------------------------------------------------------------------------------------------------


def three_prices(tmp_path: Path) -> PriceBooks:
    entry = GOOD[GOOD.index("      - effective_at") :]
    text = GOOD
    for moment, dollars in (("2027-01-01", "0.010"), ("2026-07-01T12:00:00+02:00", "0.009")):
        text += entry.replace("2026-01-01", moment).replace("0.008", dollars)
    return load(tmp_path, text)


@pytest.mark.parametrize(
    ("at", "dollars"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), "0.008"),
        (datetime(2026, 7, 1, 9, 59, 59, 999999, UTC), "0.008"),
        (datetime(2026, 7, 1, 10, tzinfo=UTC), "0.009"),
        (datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=2))), "0.009"),
        (datetime(2026, 11, 21, tzinfo=UTC), "0.009"),  # the price of 2027 is entered in advance and waits
        (datetime(2026, 12, 31, 23, 59, 59, 999999, UTC), "0.009"),
        (datetime(2027, 1, 1, tzinfo=UTC), "0.010"),
        (datetime(2027, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=1))), "0.009"),  # still 2026 in UTC
        (datetime(2099, 1, 1, tzinfo=UTC), "0.010"),
    ],
)
def test_the_price_in_force(tmp_path: Path, at: datetime, dollars: str) -> None:
    booked = three_prices(tmp_path).price("acme", "model", at)
    assert rate(booked, made("512x512")).total_nanos == usd(dollars)


def test_before_the_first_price_and_without_a_zone(tmp_path: Path) -> None:
    books = three_prices(tmp_path)
    with pytest.raises(UnpricedError, match="no price for acme:model at 2025-12-31T23:59:59"):
        books.price("acme", "model", datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC))
    with pytest.raises(UnpricedError):
        books.price("other", "model", NOON)
    with pytest.raises(ValueError, match="time zone"):
        books.price("acme", "model", datetime(2026, 11, 20))  # noqa: DTZ001


def test_ids_tell_the_moment(tmp_path: Path) -> None:
    assert [entry.id for entry in three_prices(tmp_path)][:3] == [
        "acme:model@2026-01-01",
        "acme:model@2026-07-01T10:00:00Z",
        "acme:model@2027-01-01",
    ]


def test_the_version_is_the_content(tmp_path: Path) -> None:
    first = load(tmp_path).version
    relaid = GOOD.replace("title: Acme", "title: Acme Images  # a comment").replace("0.008", "0.0080")
    assert load(tmp_path, relaid).version == first
    assert load(tmp_path, GOOD.replace("0.008", "0.009")).version != first
    assert load(tmp_path, GOOD.replace("checked_at: 2026-11-20", "checked_at: 2026-11-21")).version != first


# --- snapshots ----------------------------------------------------------------------------------------------------


def test_a_broken_snapshot_is_refused() -> None:
    with pytest.raises(PricingError, match=r"snapshot: components\[0\].metric: is missing"):
        Price.from_snapshot(HEAD | {"components": [{"type": "output", "unit_price": "1"}]})
    with pytest.raises(PricingError, match="must be plain text"):
        Price.from_snapshot(HEAD | {"components": [megapixel() | {"unit_price": 0.008}]})
    with pytest.raises(PricingError, match="must be a mapping of fields"):
        Price.from_snapshot([])  # type: ignore[arg-type]


def test_usage_without_pictures_costs_nothing_by_itself(tmp_path: Path) -> None:
    assert rate(load(tmp_path).price("acme", "model", NOON), Usage()).items == ()
