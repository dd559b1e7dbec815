"""Quotes: bounds that hold, exactness that is honest, hints that are true, the dry run's shape."""

from __future__ import annotations

import itertools
import json
import timeit
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing import Expected, ImageSize, Price, Usage, load_price_books, quote, rate
from tests.pricing.examples import NOW, image, megapixel, price, size, sizes, usd

BOOKS = load_price_books()
TURBO = BOOKS.price("fal", "fal-ai/flux-2/turbo/edit", NOW)
GPT = BOOKS.price("openai", "gpt-image-2", NOW)


def test_a_known_request_is_quoted_exactly_as_it_will_be_charged() -> None:
    expected = Expected(images=2, size=size("1920x1080"), inputs=sizes("512x512"))
    quoted = quote(TURBO, expected)
    charged = rate(TURBO, Usage(sizes("1920x1080 1920x1080"), sizes("512x512")))
    assert quoted.exact
    assert quoted.low == quoted.expected == quoted.high == charged
    assert quoted.price_id == "fal:fal-ai/flux-2/turbo/edit@2025-12-29"


@pytest.mark.parametrize(
    ("expected", "low", "middle", "high"),
    [
        (Expected(), "0.008", "0.008", "0.032"),  # the size left to the model: up to 2048x2048
        (Expected(size=size("1024x1024"), inputs=(None,)), "0.016", "0.040", "0.040"),  # up to the cap of 4 MP
        (Expected(size=size("1024x1024"), inputs=(None, size("512x512"))), "0.024", "0.048", "0.048"),
    ],
)
def test_what_is_left_open_spans_the_bounds(expected: Expected, low: str, middle: str, high: str) -> None:
    quoted = quote(TURBO, expected)
    assert not quoted.exact
    assert (quoted.low.total_nanos, quoted.expected.total_nanos, quoted.high.total_nanos) == (
        usd(low), usd(middle), usd(high),
    )  # fmt: skip


def test_an_open_size_that_costs_the_same_stays_exact() -> None:
    quoted = quote(BOOKS.price("fal", "fal-ai/flux-pro/kontext", NOW), Expected())
    assert quoted.exact
    assert quoted.high.total_nanos == usd("0.04")


def test_auto_quality_spans_all_qualities_and_a_prompt_its_tokens() -> None:
    quoted = quote(GPT, Expected(size=size("1024x1024"), prompt_characters=400, attributes={"quality": "auto"}))
    assert quoted.low.total_nanos == usd("0.00588") + 40 * 5_000
    assert quoted.expected.total_nanos == usd("0.05268") + 100 * 5_000
    assert quoted.high.total_nanos == usd("0.21072") + 400 * 5_000
    assert quote(GPT, Expected(size=size("1024x1024"), prompt_characters=400)) == replace(
        quoted, request=Expected(size=size("1024x1024"), prompt_characters=400)
    )


def test_the_upper_bound_of_an_open_size_covers_the_dearest_the_model_makes() -> None:
    quoted = quote(GPT, Expected(attributes={"quality": "high"}))
    dearest = max(
        (quote(GPT, Expected(size=ImageSize(w, h), attributes={"quality": "high"})).expected.total_nanos, w, h)
        for w in range(512, 3841, 64)
        for h in range(512, 3841, 64)
        if 655_360 <= w * h <= 8_294_400 and max(w, h) <= 3 * min(w, h)
    )
    assert dearest[1:] == (2880, 2880)
    assert quoted.high.total_nanos == dearest[0]


def test_text_a_model_may_add_bounds_the_quote() -> None:
    request = Expected(images=2, size=size("1024x1024"))
    quoted = quote(BOOKS.price("google", "gemini-3-pro-image", NOW), request)
    assert quoted.expected.total_nanos == 2 * 1120 * 120_000
    assert quoted.high.total_nanos == 2 * (1120 * 120_000 + 1000 * 12_000)  # thoughts are billed as text output


def test_bounds_do_not_depend_on_the_order_of_choices() -> None:
    costs = {"low": "0.01", "medium": "0.05", "high": "0.2"}
    rates = [{"when": {"quality": quality}, "unit_price": cost} for quality, cost in costs.items()]
    for choices in itertools.permutations(costs):
        quoted = quote(price(image(rates=rates), open={"quality": list(choices)}), Expected())
        bounds = (quoted.low.total_nanos, quoted.expected.total_nanos, quoted.high.total_nanos)
        assert bounds == (usd("0.01"), usd(costs[choices[0]]), usd("0.2"))


def test_uncertain_prices_bound_the_quote() -> None:
    quoted = quote(BOOKS.price("fal", "fal-ai/flux-2-flex", NOW), Expected(size=size("1024x1024")))
    assert (quoted.low.total_nanos, quoted.expected.total_nanos, quoted.high.total_nanos) == (
        usd("0.05"), usd("0.05"), usd("0.06"),
    )  # fmt: skip
    assert not quoted.exact
    runware = quote(BOOKS.price("runware", "runware:100@1", NOW), Expected(size=size("1024x1024")))
    assert (runware.low.total_nanos, runware.high.total_nanos) == (usd("0.0006"), usd("0.0013"))


def test_run_time_is_foreseen_within_bounds() -> None:
    gpu = BOOKS.price("replicate", "hardware/nvidia-l40s", NOW)
    quoted = quote(gpu, Expected(images=2, size=size("1024x1024")))
    assert (quoted.low.total_nanos, quoted.expected.total_nanos, quoted.high.total_nanos) == (
        975_000, 9_750_000, 234_000_000,
    )  # fmt: skip


def test_the_request_fee_counts_calls() -> None:
    two_calls = quote(
        BOOKS.price("replicate", "black-forest-labs/flux-2-pro", NOW),
        Expected(images=2, size=size("1024x1024"), requests=2),
    )
    assert two_calls.expected.total_nanos == usd("0.06")


# --- hints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("1449x1448", "1448x1448"),
        ("1040x1040", "1024x1024"),
        ("1025x1024", "1024x1024"),
        ("2048x1040", "2048x1024"),
        ("1456x1456", "1440x1456"),
        ("1024x1024", None),  # exactly one megapixel
        ("512x512", None),
        ("1200x1000", None),  # too far from one megapixel
        ("1920x1080", None),
        ("2048x2048", None),
        ("1792x1792", "1744x1792"),
        ("1904x1904", None),  # 3.46 MP
    ],
)
def test_hint(text: str, better: str | None) -> None:
    hint = quote(TURBO, Expected(size=size(text))).hint
    if better is None:
        assert hint is None
    else:
        assert hint == f"{better} instead of {text} saves a megapixel per image: 0.008 USD"


SIDES = st.integers(64, 2048).map(lambda eighths: eighths * 2)


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.integers(1, 4))
def test_a_hint_is_true(width: int, height: int, images: int) -> None:
    quoted = quote(TURBO, Expected(images=images, size=ImageSize(width, height)))
    if quoted.hint is None:
        return
    smaller = size(quoted.hint.split()[0])
    assert smaller.width <= width
    assert smaller.height <= height
    assert (width - smaller.width) * 16 <= width
    assert (height - smaller.height) * 16 <= height
    after = quote(TURBO, Expected(images=images, size=smaller))
    assert quoted.expected.total_nanos - after.expected.total_nanos == images * usd("0.008")
    assert quoted.hint.endswith(f": {Decimal(images * 8).scaleb(-3)} USD")


def test_no_hint_where_pixels_cost_nothing() -> None:
    assert quote(price(image()), Expected(size=size("1025x1024"))).hint is None
    assert quote(price(megapixel(cap="1")), Expected(size=size("1025x1024"))).hint is None


def test_flux_1_1_saves_at_the_second_rate() -> None:
    pro = BOOKS.price("bfl", "flux-2-pro", NOW)
    hint = quote(pro, Expected(size=size("1040x1040"))).hint
    assert hint == "1024x1024 instead of 1040x1040 saves a megapixel per image: 0.015 USD"


# --- bounds that hold ---------------------------------------------------------------------------------------------

BOOKED = [entry for entry in BOOKS if not entry.sku.startswith("hardware/")]
PICTURES = st.builds(ImageSize, st.integers(64, 2048), st.integers(64, 2048))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(BOOKED),
    st.integers(1, 4),
    st.lists(PICTURES, max_size=3),
    st.integers(0, 3),
    st.sampled_from([None, "auto", "low", "high"]),
    st.data(),
)
def test_what_comes_out_lies_within_the_quote(
    booked: Price, images: int, inputs: list[ImageSize], hidden: int, quality: str | None, data: st.DataObject
) -> None:
    """The size was left open and some inputs could not be read; then everything turned out to be something allowed."""
    words = {} if quality is None else {"quality": quality}
    if any(part.assume is not None for part in booked.components):
        inputs = [size("512x512")] * len(inputs)  # Cloudflare takes no larger ones
    seen = tuple(None if index < hidden else one for index, one in enumerate(inputs))
    quoted = quote(booked, Expected(images=images, inputs=seen, attributes=words))
    assert quoted.low.total_nanos <= quoted.expected.total_nanos <= quoted.high.total_nanos
    assert quoted.exact == (quoted.low.total_nanos == quoted.high.total_nanos)
    if booked.estimated:
        return  # tokens come from the provider, prices are uncertain
    made = data.draw(st.sampled_from(booked.sizes)) if booked.sizes else size("1024x1024")
    chosen = {**words}
    for name, options in booked.open.items():
        if chosen.get(name, "auto") == "auto":
            chosen[name] = data.draw(st.sampled_from(options))
    actual = rate(booked, Usage((made,) * images, tuple(inputs), attributes=chosen)).total_nanos
    assert quoted.low.total_nanos <= actual <= quoted.high.total_nanos


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BOOKED), st.integers(1, 4), PICTURES, st.integers(0, 2000))
def test_bounds_are_ordered_and_a_known_size_never_widens_them(
    booked: Price, images: int, picture: ImageSize, characters: int
) -> None:
    quoted = quote(booked, Expected(images=images, size=picture, prompt_characters=characters))
    assert quoted.low.total_nanos <= quoted.expected.total_nanos <= quoted.high.total_nanos
    assert not quoted.exact or quoted.low.total_nanos == quoted.high.total_nanos


# --- the dry run --------------------------------------------------------------------------------------------------


def test_the_dry_run_has_the_references_shape() -> None:
    quoted = quote(TURBO, Expected(size=size("1040x1040"), inputs=sizes("512x512")))
    assert json.loads(json.dumps(quoted.as_dict("flux.2-dev-turbo", "fal"))) == {
        "estimated": True,
        "model": "flux.2-dev-turbo",
        "provider": "fal",
        "total_cost_micros": 24_000,
        "currency": "USD",
        "components": [
            {"type": "output", "metric": "megapixel", "quantity": 1.031494140625, "billable_quantity": 2,
             "unit_price": "0.008", "total_cost": 16_000, "label": "output megapixel"},
            {"type": "input", "metric": "megapixel", "quantity": 0.25, "billable_quantity": 1,
             "unit_price": "0.008", "total_cost": 8_000, "label": "input megapixel"},
        ],
        "total_cost": "0.024",
        "low_cost": "0.024",
        "high_cost": "0.024",
        "exact": True,
        "price_id": "fal:fal-ai/flux-2/turbo/edit@2025-12-29",
        "hint": "1024x1024 instead of 1040x1040 saves a megapixel per image: 0.008 USD",
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BOOKED), PICTURES, st.integers(0, 500))
def test_micros_of_the_components_add_up(booked: Price, picture: ImageSize, characters: int) -> None:
    quoted = quote(booked, Expected(size=picture, inputs=(picture,), prompt_characters=characters))
    shown = quoted.as_dict("model", "provider")
    assert sum(component["total_cost"] for component in shown["components"]) == shown["total_cost_micros"]
    assert abs(shown["total_cost_micros"] * 1000 - quoted.expected.total_nanos) <= 500
    for component, item in zip(shown["components"], quoted.expected.items, strict=True):
        assert isinstance(component["total_cost"], int)
        assert abs(component["total_cost"] * 1000 - item.amount_nanos) <= 1000


def test_quoting_is_quick_enough_for_every_candidate_of_every_request() -> None:
    expected = Expected(size=size("1024x1024"))
    best = min(timeit.repeat(lambda: quote(TURBO, expected), number=200, repeat=5)) / 200
    assert best < 200e-6  # about 9 us on the machine it was written on; the margin is for busy ones
