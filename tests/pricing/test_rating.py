"""Rating: the megapixel rule, every price shape, and properties that must hold for any usage."""

from __future__ import annotations

import decimal
import json
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing import ImageSize, Price, Usage, load_price_books, money_text, rate
from tests.pricing.examples import NOW, image, made, megapixel, price, size, sizes, usd

TURBO = price(megapixel(), megapixel("input"))

# size, units, dollars: the vectors for "round up, 2^20 pixels"
VECTORS = [
    ("512x512", 1, "0.008"),
    ("1024x768", 1, "0.008"),
    ("1000x1000", 1, "0.008"),
    ("1344x768", 1, "0.008"),
    ("1024x1024", 1, "0.008"),
    ("1200x1000", 2, "0.016"),
    ("1280x1024", 2, "0.016"),
    ("1536x1024", 2, "0.016"),
    ("1920x1080", 2, "0.016"),
    ("2048x1024", 2, "0.016"),
    ("1449x1448", 3, "0.024"),
    ("1536x1536", 3, "0.024"),
    ("2048x2048", 4, "0.032"),
]


@pytest.mark.parametrize(("text", "units", "dollars"), VECTORS)
def test_megapixels_round_up(text: str, units: int, dollars: str) -> None:
    [item] = rate(TURBO, made(text)).items
    assert item.billable_quantity == units
    assert item.amount_nanos == usd(dollars)
    assert item.quantity == Decimal(size(text).pixels) / 1_048_576


@pytest.mark.parametrize(
    ("outputs", "inputs", "units", "dollars"),
    [
        ("512x512 512x512 512x512 512x512", "", [4], "0.032"),
        ("1024x1024", "512x512", [1, 1], "0.016"),
        ("1024x1024", "512x512 512x512", [1, 2], "0.024"),
        ("1024x1024", "2048x2048", [1, 4], "0.040"),
        ("1024x1024", "4096x4096", [1, 4], "0.040"),  # scaled to 4 MP before it is billed
    ],
)
def test_each_picture_counts_on_its_own(outputs: str, inputs: str, units: list[int], dollars: str) -> None:
    charge = rate(TURBO, made(outputs, inputs))
    assert [item.billable_quantity for item in charge.items] == units
    assert charge.total_nanos == usd(dollars)


# components, usage, dollars, billable quantities
SHAPES: dict[str, tuple[list[dict[str, Any]], Usage, str, list[str]]] = {
    "10^6, rounded up": ([megapixel(megapixel="1000000")], made("1024x1024"), "0.016", ["2"]),
    "10^6, exact": ([megapixel(megapixel="1000000", rounding="exact")], made("1000x500"), "0.004", ["0.5"]),
    "per request": ([megapixel(rounding="up_per_request")], made("512x512 " * 4), "0.008", ["1"]),
    "per request with inputs": (
        [megapixel("request", rounding="up_per_request", cap="4")],
        made("1024x1024", "512x512"),
        "0.016",
        ["2"],
    ),
    "minimum": ([megapixel(minimum="2")], made("512x512 2048x2048"), "0.048", ["6"]),
    "exact with a minimum": ([megapixel(rounding="exact", minimum="1")], made("512x512 1536x1024"), "0.02", ["2.5"]),
    "minimum per request": ([megapixel(rounding="up_per_request", minimum="3")], made("512x512"), "0.024", ["3"]),
    "cap": ([megapixel(cap="2")], made("2048x2048 512x512"), "0.024", ["3"]),
    "inputs scaled to one megapixel": (
        [megapixel("input", cap="1")],
        made("1024x1024", "512x512 4096x4096"),
        "0.016",
        ["2"],
    ),
    "first and further": (
        [
            megapixel(unit_price="0.03", up_to="1"),
            megapixel(unit_price="0.015", above="1"),
            megapixel("input", "0.015"),
        ],
        made("1920x1080 2048x2048 512x512", "1024x1024"),
        "0.165",
        ["3", "4", "1"],
    ),
    "half a megapixel for a reference": (
        [megapixel(unit_price="0.02"), megapixel("input", "0.02", fixed="0.5")],
        made("1024x1024", "4096x4096 64x64 512x512"),
        "0.05",
        ["1", "1.5"],
    ),
    "one price for a reference": (
        [image("0.02"), image("0.002", "input")],
        made("2048x2048", "512x512"),
        "0.022",
        ["1", "1"],
    ),
    "flat": ([image()], made("512x512 2048x2048"), "0.08", ["2"]),
    "quality x size": (
        [image(rates=[
            {"when": {"quality": "low", "size": "1024x1024"}, "unit_price": "0.01"},
            {"when": {"quality": "high", "size": "1024x1024"}, "unit_price": "0.1"},
            {"when": {"quality": "high"}, "unit_price": "0.2"},
        ])],
        made("1024x1024 1536x1024 1024x1024", attributes={"quality": "high"}),
        "0.4",
        ["2", "1"],
    ),
    "resolution tiers by what came out": (
        [image(rates=[
            {"when": {"max_pixels": "1048576"}, "unit_price": "0.01"},
            {"when": {"max_pixels": "4194304"}, "unit_price": "0.02"},
            {"unit_price": "0.04"},
        ])],
        made("1024x1024 2048x2048 2049x2048"),
        "0.07",
        ["1", "1", "1"],
    ),
    "speed": (
        [image(rates=[{"when": {"rendering_speed": "TURBO"}, "unit_price": "0.03"}, {"unit_price": "0.06"}])],
        made(attributes={"rendering_speed": "TURBO"}),
        "0.03",
        ["1"],
    ),
    "tokens by class": (
        [
            {"type": "input", "metric": "token", "token": token, "per": "1000000", "unit_price": price,
             "estimate": {"per_image": [{"quantity": "1000"}]}}
            for token, price in (("text_input", "5"), ("image_input", "8"), ("image_output", "30"))
        ],
        Usage(tokens={"text_input": 10, "image_input": 40, "image_output": 7024, "text_output": 99}),
        "0.21109",
        ["10", "40", "7024"],
    ),
    "per request plus megapixels": (
        [{"type": "request", "metric": "request", "unit_price": "0.015"}, megapixel(unit_price="0.015")],
        made("1920x1080 1024x1024", requests=2),
        "0.075",
        ["2", "3"],
    ),
    "steps": (
        [{"type": "output", "metric": "step", "unit_price": "0.0005", "steps": {"default": "28"}}],
        made("1024x1024 1024x1024", steps=30),
        "0.03",
        ["60"],
    ),
    "default steps": (
        [{"type": "output", "metric": "step", "unit_price": "0.0005", "steps": {"default": "28"}}],
        made(),
        "0.014",
        ["28"],
    ),
    "megapixels x share of steps": (
        [megapixel(unit_price="0.01", rounding="exact", steps={"default": "28", "included": "28"})],
        made("1024x1024", steps=14),
        "0.005",
        ["0.5"],
    ),
    "steps above the included": (
        [megapixel(unit_price="0.0027", megapixel="1000000", rounding="exact",
                   steps={"default": "4", "included": "4", "minimum": "4"})],
        made("1000x1000 1000x1000", steps=1),
        "0.0054",
        ["2"],
    ),
    "tile x step": (
        [{"type": "output", "metric": "tile", "tile": "512x512", "unit_price": "0.00041", "steps": {"default": "28"}}],
        made("513x512 512x512", steps=10),
        "0.0123",
        ["30"],
    ),
    "per pixel": (
        [{"type": "output", "metric": "pixel", "unit_price": "0.00000005"}],
        made(),
        "0.0524288",
        ["1048576"],
    ),
    "per second": (
        [{"type": "request", "metric": "second", "unit_price": "0.0014",
          "estimate": {"per_image": [{"quantity": "5"}]}}],
        Usage(seconds=Decimal("0.61")),
        "0.000854",
        ["0.61"],
    ),
    "a surcharge that applies": (
        [image(), image("0.014", "request", when={"web_search": "true"})],
        made(attributes={"web_search": "true"}),
        "0.054",
        ["1", "1"],
    ),
    "a surcharge that does not": ([image(), image("0.014", when={"web_search": "true"})], made(), "0.04", ["1"]),
    "a formula where no rate is published": (
        [image(
            rates=[{"when": {"quality": "high", "size": "1024x1024"}, "unit_price": "0.5"}],
            formula={"q": {"low": "16", "high": "96"}, "token_price": "0.00003", "round_up_to": "0.001",
                     "plus": "0.01"},
        )],
        made("1024x1024 1024x768", attributes={"quality": "high"}),
        "0.655",
        ["1", "1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_price_shape(shape: str) -> None:
    components, usage, dollars, quantities = SHAPES[shape]
    rated = price(*components)
    charge = rate(rated, usage)
    assert money_text(charge.total_nanos) == money_text(usd(dollars))
    assert [money_text(int(item.billable_quantity.scaleb(9))) for item in charge.items] == quantities
    assert rate(Price.from_snapshot(json.loads(json.dumps(rated.snapshot()))), usage) == charge


def test_an_unknown_word_costs_the_dearest_rate_never_nothing() -> None:
    rated = price(image(rates=[{"when": {"quality": quality}, "unit_price": p} for quality, p in
                               (("low", "0.01"), ("high", "0.2"), ("medium", "0.05"))]))  # fmt: skip
    assert rate(rated, made(attributes={"quality": "ultra"})).total_nanos == usd("0.2")
    assert rate(rated, made()).total_nanos == usd("0.2")


def test_the_providers_default_holds_when_the_request_says_nothing_or_auto() -> None:
    rates = [{"when": {"quality": quality}, "unit_price": p} for quality, p in (("low", "0.01"), ("high", "0.2"))]
    rated = price(image(rates=rates), open={"quality": ["low"]})
    assert rate(rated, made()).total_nanos == usd("0.01")
    assert rate(rated, made(attributes={"quality": "auto"})).total_nanos == usd("0.01")
    assert rate(rated, made(attributes={"quality": "high"})).total_nanos == usd("0.2")


@pytest.mark.parametrize(
    ("component", "dollars"),
    [
        (megapixel("input", "0.008"), "0.032"),  # the cap
        (megapixel("input", "0.008", cap="9"), "0.072"),
        (megapixel("input", "0.008", fixed="0.5"), "0.004"),
        ({"type": "input", "metric": "megapixel", "megapixel": "1000000", "rounding": "exact", "unit_price": "0.008",
          "assume": "2.5"}, "0.02"),
        ({"type": "input", "metric": "tile", "tile": "512x512", "unit_price": "0.001", "assume": "16"}, "0.016"),
        (image("0.02", "input"), "0.02"),
    ],
)  # fmt: skip
def test_an_input_of_unknown_size_is_priced_by_rule(component: dict[str, Any], dollars: str) -> None:
    assert rate(price(component), Usage(inputs=(None,))).total_nanos == usd(dollars)


def test_ties_go_to_the_even_nano_once_per_line() -> None:
    half = price(image("0.0000000005"), {"type": "request", "metric": "request", "unit_price": "0.0000000015"})
    assert [item.amount_nanos for item in rate(half, made()).items] == [0, 2]
    assert [item.amount_nanos for item in rate(half, made("1x1 1x1 1x1", requests=3)).items] == [2, 4]


def test_a_third_of_a_unit_is_not_rounded_before_the_amount() -> None:
    rated = price(megapixel(unit_price="0.03", rounding="exact", steps={"default": "28", "included": "28"}))
    assert rate(rated, made(steps=7)).total_nanos == usd("0.0075")
    three = price(megapixel(unit_price="0.000000003", rounding="exact", steps={"default": "1", "included": "6"}))
    assert rate(three, made(steps=1)).total_nanos == 0  # exactly half a nano: to even
    assert rate(three, made(steps=3)).total_nanos == 2  # exactly one and a half


def test_the_callers_decimal_context_changes_nothing() -> None:
    book = [entry for entry in load_price_books() if entry.book in ("google", "deepinfra", "fal")]
    usage = made("1449x1447", "513x511", steps=13, attributes={"quality": "medium"})
    expected = [rate(entry, usage) for entry in book]
    with decimal.localcontext() as context:
        context.prec = 2
        context.rounding = decimal.ROUND_UP
        assert [rate(entry, usage) for entry in book] == expected
        assert [rate(Price.from_snapshot(entry.snapshot()), usage) for entry in book] == expected


def test_a_line_nothing_reaches_is_left_out() -> None:
    pro = load_price_books().price("bfl", "flux-2-pro", NOW)
    assert [item.label for item in rate(pro, made("1024x1024")).items] == ["first output megapixel"]
    assert [item.label for item in rate(pro, made("1025x1024")).items] == [
        "first output megapixel", "further output megapixels",
    ]  # fmt: skip


def test_labels_tell_the_lines_apart() -> None:
    entry = load_price_books().price("openai", "gpt-image-2", NOW)
    charge = rate(entry, Usage(tokens={"text_input": 1, "cached_text_input": 1, "image_input": 1, "image_output": 1}))
    assert [item.label for item in charge.items] == [
        "text input token", "cached text input token", "image input token", "image output token",
    ]  # fmt: skip
    assert [item.type for item in charge.items] == ["input", "input", "input", "output"]


# --- properties ---------------------------------------------------------------------------------------------------

SIDES = st.integers(1, 4096)
PICTURES = st.builds(ImageSize, SIDES, SIDES)
SEVERAL = st.lists(PICTURES, min_size=1, max_size=5)
UNITS = st.integers(1, 10**9).map(lambda nanos: format(Decimal(nanos).scaleb(-9), "f"))


@st.composite
def components(draw: st.DrawFn, type_: str = "output", *, additive: bool = False) -> dict[str, Any]:
    """A component that counts pictures, of any shape."""
    unit_price = draw(UNITS)
    metric = draw(st.sampled_from(["megapixel", "megapixel", "pixel", "image", "tile", "step"]))
    result: dict[str, Any] = {"type": type_, "metric": metric, "unit_price": unit_price}
    if metric == "megapixel":
        roundings = ["up_per_image", "exact"] if additive else ["up_per_image", "up_per_request", "exact"]
        result |= {
            "megapixel": draw(st.sampled_from(["1048576", "1000000"])),
            "rounding": draw(st.sampled_from(roundings)),
            "minimum": str(draw(st.integers(0, 3))),
        }
    if metric in ("megapixel", "pixel"):
        if type_ != "output" or draw(st.booleans()):
            result["cap"] = str(draw(st.integers(1, 6)))
        if draw(st.booleans()):
            result["above"] = str(draw(st.integers(0, 2)))
    if metric == "tile":
        result |= {"tile": draw(st.sampled_from(["512x512", "256x300"])), "assume": "4"}
    if metric == "step" or draw(st.booleans()):
        steps = {"default": draw(st.integers(1, 50)), "included": draw(st.integers(1, 28))}
        result["steps"] = {name: str(value) for name, value in steps.items()}
    return result


@st.composite
def prices(draw: st.DrawFn, *, additive: bool = False) -> Price:
    parts = draw(st.lists(components(additive=additive), min_size=1, max_size=3))
    return price(*parts, *draw(st.lists(components("input", additive=additive), max_size=2)))


BOOKED = [entry for entry in load_price_books() if not entry.sku.startswith("hardware/")]


@settings(max_examples=150, deadline=None)
@given(prices(), SEVERAL, st.lists(PICTURES, max_size=3), st.integers(0, 2000), st.integers(0, 2000), st.data())
def test_more_pixels_never_cost_less(
    rated: Price, outputs: list[ImageSize], inputs: list[ImageSize], wider: int, taller: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(outputs) - 1))
    larger = list(outputs)
    larger[index] = ImageSize(outputs[index].width + wider, outputs[index].height + taller)
    before = rate(rated, Usage(tuple(outputs), tuple(inputs), steps=7))
    after = rate(rated, Usage(tuple(larger), tuple(inputs), steps=7))
    assert before.total_nanos <= after.total_nanos


@settings(max_examples=100, deadline=None)
@given(prices(additive=True), SEVERAL, SEVERAL)
def test_pictures_add_up(rated: Price, some: list[ImageSize], more: list[ImageSize]) -> None:
    together = rate(rated, Usage(tuple(some + more), tuple(more)))
    apart = rate(rated, Usage(tuple(some))).total_nanos + rate(rated, Usage(tuple(more), tuple(more))).total_nanos
    # each line is rounded once: half a nano of difference for every line on either side at most
    assert abs(together.total_nanos - apart) <= (3 * len(rated.components) + 1) // 2


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BOOKED), SEVERAL, SEVERAL)
def test_pictures_add_up_exactly_in_every_book(rated: Price, some: list[ImageSize], more: list[ImageSize]) -> None:
    if any(part.rounding == "exact" and part.metric in ("megapixel", "pixel") for part in rated.components):
        return  # continuous megapixels: covered above, to the rounding of a line
    assert (
        rate(rated, Usage(tuple(some + more), tuple(more), requests=2)).total_nanos
        == rate(rated, Usage(tuple(some))).total_nanos + rate(rated, Usage(tuple(more), tuple(more))).total_nanos
    )


@settings(max_examples=100, deadline=None)
@given(st.one_of(prices(), st.sampled_from(BOOKED)), SEVERAL, SEVERAL, st.randoms(use_true_random=False))
def test_the_order_of_pictures_does_not_matter(
    rated: Price, outputs: list[ImageSize], inputs: list[ImageSize], chance: Any
) -> None:
    before = rate(rated, Usage(tuple(outputs), tuple(inputs))).total_nanos
    chance.shuffle(outputs)
    chance.shuffle(inputs)
    assert rate(rated, Usage(tuple(outputs), tuple(inputs))).total_nanos == before


@settings(max_examples=100, deadline=None)
@given(st.one_of(prices(), st.sampled_from(BOOKED)), SEVERAL, st.lists(st.one_of(st.none(), PICTURES), max_size=4))
def test_a_snapshot_rates_equally_and_items_add_up(
    rated: Price, outputs: list[ImageSize], inputs: list[ImageSize | None]
) -> None:
    usage = Usage(tuple(outputs), tuple(inputs), steps=9)
    charge = rate(rated, usage)
    assert sum(item.amount_nanos for item in charge.items) == charge.total_nanos
    assert rate(Price.from_snapshot(json.loads(json.dumps(rated.snapshot()))), usage) == charge
    for item in charge.items:
        exact = Fraction(item.billable_quantity) * Fraction(item.unit_price) * 10**9
        assert abs(item.amount_nanos - exact) <= Fraction(1, 2) + Fraction(1, 10**30)
        assert all(isinstance(value, str) for value in item.as_dict().values())


@settings(max_examples=150, deadline=None)
@given(UNITS, SEVERAL, st.lists(PICTURES, max_size=4), st.integers(1, 8))
def test_the_megapixel_rule_by_plain_arithmetic(
    unit_price: str, outputs: list[ImageSize], inputs: list[ImageSize], cap: int
) -> None:
    rated = price(megapixel(unit_price=unit_price), megapixel("input", unit_price, cap=str(cap)))
    made_units = sum(max(1, ceil(Fraction(one.width * one.height, 2**20))) for one in outputs)
    sent_units = sum(min(cap, max(1, ceil(Fraction(one.width * one.height, 2**20)))) for one in inputs)
    expected = (made_units + sent_units) * int(Decimal(unit_price).scaleb(9))
    assert rate(rated, Usage(tuple(outputs), tuple(inputs))).total_nanos == expected


def test_sizes_are_read_from_text() -> None:
    assert sizes("512x512") == (ImageSize(512, 512),)
