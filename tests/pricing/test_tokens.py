"""OpenAI's token formula against every published figure (openai.md, fal model pages; 2026-11-20)."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

import pytest

from pricing import Expected, Usage, load_price_books, quote, rate
from pricing.tokens import image_output_tokens
from tests.pricing.examples import NOW, size, usd

PUBLISHED = {
    "1024x1024": (196, 439, 1756, 3122, 7024),
    "1536x1024": (158, 343, 1372, 2459, 5488),
    "1024x1536": (158, 343, 1372, 2459, 5488),
    "1024x768": (134, 301, 1204, 2140, 4815),
    "1920x1080": (147, 343, 1320, 2347, 5280),
    "2560x1440": (205, 478, 1843, 3276, 7370),
    "3840x2160": (371, 865, 3336, 5930, 13342),
}
QUALITIES = {
    "gpt-image-2": {"low": 16, "medium": 48, "high": 96},
    "gpt-image-2.5-flare": {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96},
}
OLDER = {
    "1024x1024": {"low": 272, "medium": 1056, "high": 4160},
    "1024x1536": {"low": 408, "medium": 1584, "high": 6240},
    "1536x1024": {"low": 400, "medium": 1568, "high": 6208},
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_token_counts(text: str) -> None:
    counts = tuple(image_output_tokens(q, size(text)) for q in (16, 24, 48, 64, 96))
    assert counts == PUBLISHED[text]


@pytest.mark.parametrize("model", QUALITIES)
@pytest.mark.parametrize("text", PUBLISHED)
def test_a_quote_uses_the_q_of_model_and_quality(model: str, text: str) -> None:
    price = load_price_books().price("openai", model, NOW)
    by_q = dict(zip((16, 24, 48, 64, 96), PUBLISHED[text], strict=True))
    for quality, q in QUALITIES[model].items():
        quoted = quote(price, Expected(size=size(text), attributes={"quality": quality}))
        assert quoted.exact  # no prompt, so nothing is left to assume
        assert quoted.expected.total_nanos == by_q[q] * 30_000


def test_the_same_word_costs_four_times_as_much_at_the_older_model() -> None:
    books = load_price_books()
    old, new = (books.price("openai", model, NOW) for model in QUALITIES)
    request = Expected(size=size("1024x1024"), attributes={"quality": "high"})
    assert quote(old, request).expected.total_nanos == 4 * quote(new, request).expected.total_nanos


def test_fal_rounds_gpt_image_2_up_to_a_tenth_of_a_cent_in_17_of_18_cells() -> None:
    price = load_price_books().price("fal", "openai/gpt-image-2", NOW)
    differing = []
    for text in ("1024x768", "1024x1024", "1024x1536", "1920x1080", "2560x1440", "3840x2160"):
        for quality, q in QUALITIES["gpt-image-2"].items():
            dollars = Decimal(image_output_tokens(q, size(text))) * 30 / 1_000_000
            rounded = dollars.quantize(Decimal("0.001"), ROUND_CEILING)
            published = rate(price, Usage(outputs=(size(text),), attributes={"quality": quality})).total_nanos
            if published != usd(str(rounded)):
                differing.append((text, quality))
    assert differing == [("1920x1080", "high")]


@pytest.mark.parametrize(
    ("model", "per_million", "published"),
    [
        ("gpt-image-1.5", 32, {"1024x1024": (".009", ".034", ".133"), "1024x1536": (".013", ".051", ".200")}),
        ("gpt-image-1-mini", 8, {"1024x1024": (".0022", ".0084", ".0333"), "1024x1536": (".0033", ".0127", ".0499")}),
    ],
)
def test_the_older_family_by_its_table(model: str, per_million: int, published: dict[str, tuple[str, ...]]) -> None:
    price = load_price_books().price("openai", model, NOW)
    for text, counts in OLDER.items():
        for index, (quality, count) in enumerate(counts.items()):
            quoted = quote(price, Expected(size=size(text), attributes={"quality": quality}))
            image = next(item for item in quoted.expected.items if item.label.startswith("image output"))
            assert image.quantity == count
            assert image.amount_nanos == count * per_million * 1000
            if text in published:
                dollars = Decimal(published[text][index])
                assert abs(Decimal(image.amount_nanos).scaleb(-9) - dollars) <= Decimal("0.0005")


@pytest.mark.parametrize(
    ("model", "text", "resolution", "tokens", "dollars"),
    [
        ("gemini-2.5-flash-image", "1024x1024", None, 1290, "0.0387"),
        ("gemini-3.1-flash-image", "512x512", "512", 747, "0.045"),
        ("gemini-3.1-flash-image", "512x512", None, 747, "0.045"),
        ("gemini-3.1-flash-image", "1024x1024", None, 1120, "0.067"),
        ("gemini-3.1-flash-image", "2048x2048", "2K", 1680, "0.101"),
        ("gemini-3.1-flash-image", "2688x1536", None, 1680, "0.101"),
        ("gemini-3.1-flash-image", "4096x4096", None, 2520, "0.151"),
        ("gemini-3.1-flash-lite-image", "1024x1024", None, 1120, "0.0336"),
        ("gemini-3-pro-image", "1024x1024", None, 1120, "0.134"),
        ("gemini-3-pro-image", "2048x2048", None, 1120, "0.134"),
        ("gemini-3-pro-image", "4096x4096", "4K", 2000, "0.24"),
        ("gemini-3-pro-image", "4096x4096", None, 2000, "0.24"),
        ("gemini-nano-banana-2.1", "1024x1024", None, 1120, "0.0336"),
    ],
)
def test_gemini_pictures_by_resolution(
    model: str, text: str, resolution: str | None, tokens: int, dollars: str
) -> None:
    price = load_price_books().price("google", model, NOW)
    words = {"resolution": resolution} if resolution else {}
    charge = quote(price, Expected(size=size(text), attributes=words)).expected
    image = next(item for item in charge.items if item.label.startswith("image output"))
    assert image.quantity == tokens
    assert abs(Decimal(image.amount_nanos).scaleb(-9) - Decimal(dollars)) <= Decimal("0.0005")


def test_partial_pictures_cost_a_hundred_tokens_each() -> None:
    price = load_price_books().price("openai", "gpt-image-2", NOW)
    request = Expected(size=size("1024x1024"), attributes={"quality": "low"})
    partial = Expected(size=size("1024x1024"), attributes={"quality": "low"}, partial_images=3)
    quoted, plain = quote(price, partial), quote(price, request)
    assert quoted.expected.total_nanos - plain.expected.total_nanos == 300 * 30_000
    assert quoted.high.total_nanos - plain.high.total_nanos == 300 * 30_000
    assert quoted.low.total_nanos == plain.low.total_nanos  # fewer may arrive than were asked for
