"""The packaged books: they load, every entry reproduces a published figure, and a second reading agrees to the nano."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase

import pytest

from pricing import ImageSize, Price, PriceBooks, UnpricedError, Usage, check_price_books, load_price_books, rate
from pricing.component import TOKENS
from tests.pricing import recompute
from tests.pricing.examples import NOW, size, sizes, usd

# book | sku (* as in file names) | what was consumed | dollars. Figures from the published tables.
GOLDEN = """
fal | fal-ai/flux-2/turbo* | out=512x512 | 0.008
fal | fal-ai/flux-2/turbo* | out=1024x1024 | 0.008
fal | fal-ai/flux-2/turbo* | out=1920x1080 | 0.016
fal | fal-ai/flux-2/turbo* | out=2048x2048 | 0.032
fal | fal-ai/flux-2/turbo/edit | out=1024x1024 in=512x512 | 0.016
fal | fal-ai/flux-2/turbo/edit | out=1024x1024 in=512x512,512x512 | 0.024
fal | fal-ai/flux-2/turbo | out=512x512,512x512,512x512,512x512 | 0.032
fal | fal-ai/flux-2/turbo/edit | out=1024x1024 in=4096x4096 | 0.040
fal | fal-ai/flux-2/flash | out=1024x1024 | 0.005
fal | fal-ai/flux-2/flash/edit | out=1024x1024 in=1024x1024 | 0.010
fal | fal-ai/flux-2 | out=1024x1024 | 0.012
fal | fal-ai/flux-2/edit | out=1024x1024 in=1024x1024 | 0.024
fal | fal-ai/flux-2-flex* | out=1024x1024 in=1024x1024 | 0.10
fal | fal-ai/flux-2-pro* | out=1024x1024 | 0.03
fal | fal-ai/flux-2-pro* | out=1920x1080 | 0.045
fal | fal-ai/flux-2-pro/edit | out=1024x1024 in=1024x1024 | 0.045
fal | fal-ai/flux-2-max* | out=1024x1024 | 0.07
fal | fal-ai/flux-2-max* | out=1920x1080 in=512x512 | 0.13
fal | fal-ai/flux/schnell | out=2048x2048 | 0.012
fal | fal-ai/flux/dev | out=512x512 | 0.025
fal | fal-ai/flux/dev | out=1920x1080 | 0.05
fal | fal-ai/flux-pro/v1.1 | out=2048x2048 | 0.16
fal | fal-ai/flux-pro/v1.1-ultra | out=2048x2048 | 0.06
fal | fal-ai/flux-pro/kontext | out=1024x1024 in=1024x1024 | 0.04
fal | fal-ai/flux-pro/kontext/max | out=1024x1024 in=1024x1024 | 0.08
fal | fal-ai/nano-banana | out=1024x1024,1024x1024 | 0.078
fal | fal-ai/nano-banana/edit | out=1024x1024 in=1024x1024 | 0.039
fal | fal-ai/nano-banana-2* | out=512x512 resolution=0.5K | 0.06
fal | fal-ai/nano-banana-2* | out=1024x1024 resolution=1K | 0.08
fal | fal-ai/nano-banana-2* | out=2048x2048 resolution=2K | 0.12
fal | fal-ai/nano-banana-2* | out=4096x4096 resolution=4K | 0.16
fal | fal-ai/nano-banana-2* | out=512x512 | 0.06
fal | fal-ai/nano-banana-2* | out=1024x1024 | 0.08
fal | fal-ai/nano-banana-2* | out=2688x1536 | 0.12
fal | fal-ai/nano-banana-2* | out=4096x4096 | 0.16
fal | fal-ai/nano-banana-pro* | out=1024x1024 resolution=1K | 0.15
fal | fal-ai/nano-banana-pro* | out=2048x2048 resolution=2K | 0.15
fal | fal-ai/nano-banana-pro* | out=4096x4096 resolution=4K | 0.30
fal | fal-ai/nano-banana-pro* | out=4096x4096 | 0.30
fal | fal-ai/bytedance/seedream/* | out=2048x2048 | 0.03
fal | fal-ai/ideogram/v3 | out=1024x1024 rendering_speed=TURBO | 0.03
fal | fal-ai/ideogram/v3 | out=1024x1024 rendering_speed=BALANCED | 0.06
fal | fal-ai/ideogram/v3 | out=1024x1024 | 0.06
fal | fal-ai/ideogram/v3 | out=1024x1024 rendering_speed=QUALITY | 0.09
fal | fal-ai/recraft/v3/text-to-image | out=1024x1024 | 0.04
fal | openai/gpt-image-2 | out=1536x1024 quality=high | 0.165
fal | openai/gpt-image-2 | out=1024x1024 | 0.211
fal | openai/gpt-image-2/edit | out=1536x1024 in=512x512 quality=medium | 0.055
fal | openai/gpt-image-2.5/*/* | out=1024x1024 quality=low | 0.00588
fal | openai/gpt-image-2.5/*/* | out=1024x1024 quality=medium | 0.01317
fal | openai/gpt-image-2.5/*/* | out=1024x1024 quality=high | 0.05268
fal | openai/gpt-image-2.5/*/* | out=1024x1024 quality=xhigh | 0.09366
fal | openai/gpt-image-2.5/*/* | out=1024x1024 quality=max | 0.21072
fal | openai/gpt-image-2.5/*/* | out=3840x2160 quality=max | 0.40026
gpu-fast | flux.2-dev-turbo | out=1024x1024 in=512x512 | 0.024
gpu-fast | flux.2-dev-turbo | out=1920x1080 | 0.024
gpu-spot | flux.2-dev-turbo | out=1024x1024 in=512x512 | 0.010
gpu-spot | flux.2-dev-turbo | out=2048x2048 | 0.020
openai | gpt-image-2* | tokens=text_input:1000000 | 5
openai | gpt-image-2* | tokens=cached_text_input:1000000 | 1.25
openai | gpt-image-2* | tokens=image_input:1000000 | 8
openai | gpt-image-2* | tokens=cached_image_input:1000000 | 2
openai | gpt-image-2* | tokens=image_output:1000000 | 30
openai | gpt-image-1.5* | tokens=text_input:1000000 | 5
openai | gpt-image-1.5* | tokens=cached_text_input:1000000 | 1.25
openai | gpt-image-1.5* | tokens=image_input:1000000 | 8
openai | gpt-image-1.5* | tokens=cached_image_input:1000000 | 2
openai | gpt-image-1.5* | tokens=image_output:1000000 | 32
openai | gpt-image-1.5* | tokens=text_output:1000000 | 10
openai | chatgpt-image-latest | tokens=image_output:1000000 | 32
openai | gpt-image-1-mini | tokens=text_input:1000000 | 2
openai | gpt-image-1-mini | tokens=cached_text_input:1000000 | 0.20
openai | gpt-image-1-mini | tokens=image_input:1000000 | 2.50
openai | gpt-image-1-mini | tokens=cached_image_input:1000000 | 0.25
openai | gpt-image-1-mini | tokens=image_output:1000000 | 8
openai | gpt-image-2 | out=1024x1024 tokens=text_input:10,image_input:40,image_output:7024 | 0.21109
azure | gpt-image-2* | tokens=image_output:1000000 | 30
azure | gpt-image-1.5* | tokens=image_output:1000000,text_output:1000000 | 42
azure | gpt-image-1-mini | tokens=image_output:1000000,image_input:1000000 | 10.50
azure | FLUX.1.1-pro | out=1024x1024 | 0.04
azure | FLUX.1-Kontext-pro | out=1024x1024 in=1024x1024 | 0.04
azure | FLUX.2-pro | out=1024x1024 | 0.04
azure | FLUX.2-flex | out=1024x1024 | 0.0524288
azure | MAI-Image-2.6 | tokens=text_input:1000000,image_input:1000000,image_output:1000000 | 51
azure | MAI-Image-2.6-Flash | tokens=text_input:1000000,image_input:1000000,image_output:1000000 | 23.25
bfl | flux-2-klein-4b | out=1024x1024 | 0.014
bfl | flux-2-klein-4b | out=2048x2048 in=1024x1024 | 0.018
bfl | flux-2-klein-9b* | out=1920x1080 | 0.017
bfl | flux-2-pro* | out=1024x1024 | 0.03
bfl | flux-2-pro* | out=1920x1080 | 0.045
bfl | flux-2-pro* | out=2048x2048 | 0.075
bfl | flux-2-pro* | out=1024x1024 in=1024x1024 | 0.045
bfl | flux-2-pro* | out=1024x1024 in=4096x4096 | 0.09
bfl | flux-2-max | out=1920x1080 | 0.10
bfl | flux-2-flex | out=1920x1080 | 0.10
bfl | flux-pro-1.1 | out=1024x768 | 0.04
bfl | flux-pro-1.1-ultra | out=2752x1536 | 0.06
bfl | flux-kontext-pro | out=1024x1024 in=1024x1024 | 0.04
bfl | flux-kontext-max | out=1024x1024 in=1024x1024 | 0.08
bfl | flux-pro-1.0-fill | out=1024x1024 in=1024x1024 | 0.05
bfl | flux-pro-1.0-expand | out=1024x1024 in=1024x1024 | 0.05
bfl | flux-dev | out=1024x1024 | 0.025
replicate | black-forest-labs/flux-schnell | out=1024x1024,1024x1024,1024x1024,1024x1024 | 0.012
replicate | black-forest-labs/flux-dev | out=1024x1024 | 0.025
replicate | black-forest-labs/flux-1.1-pro | out=1024x1024 | 0.04
replicate | ideogram-ai/ideogram-v3-quality | out=1024x1024 | 0.09
replicate | black-forest-labs/flux-2-pro | out=1024x1024 | 0.03
replicate | black-forest-labs/flux-2-pro | out=1920x1080 in=1024x1024 | 0.06
replicate | black-forest-labs/flux-2-flex | out=1024x1024 in=1024x1024 | 0.12
replicate | hardware/nvidia-l40s | seconds=10 | 0.00975
replicate | hardware/nvidia-a100-80gb | seconds=0.61 | 0.000854
replicate | hardware/nvidia-h100 | seconds=2 | 0.00305
google | gemini-2.5-flash-image | tokens=image_output:1290 | 0.0387
google | gemini-2.5-flash-image | tokens=text_input:1000000,image_input:1000000,text_output:1000000 | 3.10
google | gemini-3.1-flash-image | tokens=text_input:1000000,image_output:1000000,text_output:1000000 | 63.50
google | gemini-3.1-flash-image | tokens=image_input:1120 | 0.00056
google | gemini-3.1-flash-lite-image | tokens=image_output:1120 | 0.0336
google | gemini-3.1-flash-lite-image | tokens=text_input:1000000,text_output:1000000 | 1.75
google | gemini-3-pro-image | tokens=image_output:2000 | 0.24
google | gemini-3-pro-image | tokens=text_input:1000000,text_output:1000000 | 14
google | gemini-nano-banana-2.1 | tokens=image_output:1120 | 0.0336
google | gemini-nano-banana-2.1 | tokens=text_input:1000000,text_output:1000000 | 9
together | black-forest-labs/FLUX.1-schnell | out=1000x1000 | 0.0027
together | black-forest-labs/FLUX.1-schnell | out=1000x1000 steps=8 | 0.0054
together | black-forest-labs/FLUX.1-schnell | out=1000x1000 steps=2 | 0.0027
together | black-forest-labs/FLUX.1-dev | out=1024x1024 | 0.0154
together | black-forest-labs/FLUX.1.1-pro | out=1024x1024 | 0.04
together | black-forest-labs/FLUX.1-kontext-pro | out=1024x1024 | 0.04
together | black-forest-labs/FLUX.1-kontext-max | out=1024x1024 | 0.08
together | black-forest-labs/FLUX.2-pro | out=1024x1024 | 0.03
together | black-forest-labs/FLUX.2-dev | out=1024x1024 | 0.0154
together | black-forest-labs/FLUX.2-flex | out=1024x1024 | 0.03
together | black-forest-labs/FLUX.2-max | out=1024x1024 | 0.07
together | google/gemini-3-pro-image | out=1024x1024 | 0.134
together | google/flash-image-2.5 | out=1024x1024 | 0.039
runware | runware:100@1 | out=1024x1024 steps=4 | 0.0013
runware | runware:101@1 | out=1024x1024 steps=28 | 0.0038
runware | bfl:5@1 | out=1024x1024 in=1024x1024 | 0.045
deepinfra | black-forest-labs/FLUX-2-dev | out=1024x1024 steps=28 | 0.01
deepinfra | black-forest-labs/FLUX-2-dev | out=512x1024 steps=14 | 0.0025
deepinfra | black-forest-labs/FLUX-2-klein-4b | out=512x512 | 0.0035
deepinfra | black-forest-labs/FLUX-1-schnell | out=1024x1024 steps=4 | 0.002
deepinfra | black-forest-labs/FLUX-1-dev | out=1024x1024 steps=50 | 0.018
deepinfra | black-forest-labs/FLUX-2-max | out=1024x1024 | 0.07
deepinfra | black-forest-labs/FLUX-pro | out=1024x1024 | 0.05
deepinfra | black-forest-labs/FLUX-1.1-pro | out=1024x1024 | 0.04
xai | grok-imagine-image | out=1024x1024,1024x1024 | 0.04
xai | grok-imagine-image-2.0 | out=1024x1024 | 0.06
xai | grok-imagine-image-2.0 | out=1024x1024 in=1024x1024 | 0.08
xai | grok-imagine-image-pro | out=1024x1024 | 0.05
xai | grok-imagine-image-quality | out=1024x1024 | 0.05
fireworks | *flux-1-schnell-fp8 | out=1024x1024 steps=4 | 0.0014
fireworks | *flux-1-dev-fp8 | out=2048x2048 steps=28 | 0.014
fireworks | *flux-kontext-pro | out=1024x1024 | 0.04
fireworks | *flux-kontext-max | out=1024x1024 | 0.08
stability | generate/ultra | out=1024x1024 | 0.08
stability | generate/core | out=1536x1536 | 0.03
stability | generate/sd3 | out=1024x1024 | 0.065
stability | sd3.5-large | out=1024x1024 | 0.065
stability | sd3.5-large-turbo | out=1024x1024 | 0.04
stability | sd3.5-medium | out=1024x1024 | 0.035
stability | edit/[ioe]* | out=1024x1024 in=1024x1024 | 0.05
stability | edit/search-* | out=1024x1024 in=1024x1024 | 0.05
stability | edit/remove-background | out=1024x1024 in=1024x1024 | 0.05
stability | edit/replace-background-and-relight | out=1024x1024 in=1024x1024 | 0.08
stability | control/s[kt]*[eh] | out=1024x1024 in=1024x1024 | 0.05
stability | control/style-transfer | out=1024x1024 in=1024x1024 | 0.08
stability | upscale/fast | out=2048x2048 in=1024x1024 | 0.02
stability | upscale/conservative | out=2048x2048 in=1024x1024 | 0.40
stability | upscale/creative | out=2048x2048 in=1024x1024 | 0.60
ideogram | ideogram-v3/* | out=1024x1024 rendering_speed=TURBO | 0.03
ideogram | ideogram-v3/* | out=1024x1024 rendering_speed=FLASH | 0.03
ideogram | ideogram-v3/* | out=1024x1024 | 0.06
ideogram | ideogram-v3/* | out=1024x1024 rendering_speed=QUALITY | 0.09
ideogram | ideogram-v4/generate | out=1024x1024 rendering_speed=QUALITY | 0.10
recraft | recraftv4_1 | out=1024x1024 | 0.035
recraft | recraftv4_1_flash | out=1024x1024 | 0.007
recraft | recraftv4 | out=1024x1024 | 0.04
recraft | recraftv3 | out=1024x1024 | 0.04
recraft | recraftv4_pro | out=2048x2048 | 0.25
recraft | recraftv2 | out=1024x1024 | 0.022
recraft | recraftv4_vector | out=1024x1024 | 0.08
recraft | recraftv3_vector | out=1024x1024 | 0.08
recraft | recraftv4_pro_vector | out=1024x1024 | 0.30
recraft | recraftv2_vector | out=1024x1024 | 0.044
recraft | removeBackground | out=1024x1024 in=1024x1024 | 0.01
recraft | vectorize | out=1024x1024 in=1024x1024 | 0.01
recraft | crispUpscale | out=2048x2048 in=1024x1024 | 0.004
recraft | creativeUpscale | out=2048x2048 in=1024x1024 | 0.25
cloudflare | @cf/black-forest-labs/flux-1-schnell | out=1024x1024 steps=4 | 0.000652
cloudflare | @cf/black-forest-labs/flux-2-dev | out=1024x768 in=512x512 steps=10 | 0.0185
"""

# fal's page of openai/gpt-image-2, generation and edit: dollars by size, for low / medium / high.
GPT_IMAGE_2 = {
    "openai/gpt-image-2": """
        1024x768 .005/.037/.145 1024x1024 .006/.053/.211 1024x1536 .005/.042/.165
        1920x1080 .005/.040/.158 2560x1440 .007/.056/.222 3840x2160 .012/.101/.401""",
    "openai/gpt-image-2/edit": """
        1024x768 .011/.043/.151 1024x1024 .015/.061/.219 1024x1536 .018/.054/.165
        1920x1080 .017/.053/.158 2560x1440 .019/.068/.234 3840x2160 .024/.113/.413""",
}


@pytest.fixture(scope="module")
def books() -> PriceBooks:
    return load_price_books()


def _golden() -> list[tuple[str, str, Usage, int]]:
    rows = []
    for line in GOLDEN.strip().splitlines():
        book, sku, consumed, dollars = (part.strip() for part in line.split("|"))
        fields = dict(part.split("=", 1) for part in consumed.split())
        tokens = dict(pair.split(":") for pair in fields.pop("tokens", "").split(",") if pair)
        usage = Usage(
            outputs=sizes(fields.pop("out", "").replace(",", " ")),
            inputs=sizes(fields.pop("in", "").replace(",", " ")),
            tokens={name: int(count) for name, count in tokens.items()},
            steps=int(fields.pop("steps", 0)) or None,
            seconds=Decimal(fields["seconds"]) if "seconds" in fields else None,
            attributes={name: word for name, word in fields.items() if name != "seconds"},
        )
        rows.append((book, sku, usage, usd(dollars)))
    return rows


def _matching(books: PriceBooks, book: str, pattern: str) -> list[str]:
    return [sku for sku in books.skus(book) if fnmatchcase(sku, pattern)]


@pytest.mark.parametrize("row", _golden(), ids=lambda row: f"{row[0]}:{row[1]}")
def test_published_figure(books: PriceBooks, row: tuple[str, str, Usage, int]) -> None:
    book, pattern, usage, nanos = row
    skus = _matching(books, book, pattern)
    assert skus
    for sku in skus:
        assert rate(books.price(book, sku, NOW), usage).total_nanos == nanos


def test_every_sku_has_a_golden_figure(books: PriceBooks) -> None:
    covered = {(book, sku) for book, pattern, *_ in _golden() for sku in _matching(books, book, pattern)}
    assert covered == set(books.entries)


@pytest.mark.parametrize("sku", GPT_IMAGE_2)
def test_fal_publishes_gpt_image_2_by_size_and_quality(books: PriceBooks, sku: str) -> None:
    cells = GPT_IMAGE_2[sku].split()
    inputs = sizes("1024x1024") if sku.endswith("edit") else ()
    for text, prices in zip(cells[::2], cells[1::2], strict=True):
        for quality, dollars in zip(("low", "medium", "high"), prices.split("/"), strict=True):
            usage = Usage(outputs=(size(text),), inputs=inputs, attributes={"quality": quality})
            assert rate(books.price("fal", sku, NOW), usage).total_nanos == usd(dollars), (text, quality)


def test_the_packaged_books_have_nothing_to_complain_about() -> None:
    assert check_price_books(today=datetime(2026, 11, 21, tzinfo=UTC).date()) == []


def test_every_provider_named_in_the_issue_has_a_book(books: PriceBooks) -> None:
    assert set(books.names) == {
        "fal", "openai", "bfl", "replicate", "google", "together", "runware", "deepinfra", "xai", "fireworks",
        "stability", "ideogram", "recraft", "cloudflare", "azure", "gpu-fast", "gpu-spot",
    }  # fmt: skip


def test_a_price_change_holds_from_its_first_moment(books: PriceBooks) -> None:
    usage = Usage(outputs=(ImageSize(1024, 1024),))
    before, after = datetime(2025, 12, 31, 23, 59, 59, 999999, UTC), datetime(2026, 1, 1, tzinfo=UTC)
    assert rate(books.price("bfl", "flux-2-flex", before), usage).total_nanos == usd("0.06")
    assert rate(books.price("bfl", "flux-2-flex", after), usage).total_nanos == usd("0.05")


def test_an_unknown_model_and_a_time_before_the_first_price_are_unpriced(books: PriceBooks) -> None:
    with pytest.raises(UnpricedError, match="no price for openai:gpt-image-9"):
        books.price("openai", "gpt-image-9", NOW)
    with pytest.raises(UnpricedError) as caught:
        books.price("fal", "fal-ai/flux-2/turbo", datetime(2025, 12, 28, 23, 59, 59, tzinfo=UTC))
    assert (caught.value.book, caught.value.sku) == ("fal", "fal-ai/flux-2/turbo")


def test_a_snapshot_is_the_price(books: PriceBooks) -> None:
    for price in books:
        assert Price.from_snapshot(price.snapshot()) == price
        assert Price.from_snapshot(price.snapshot()).snapshot() == price.snapshot()


def test_a_second_reading_of_the_books_agrees_to_the_nano(books: PriceBooks) -> None:
    chance = random.Random(20261120)
    words = {
        "quality": ["low", "medium", "high", "xhigh", "max", "other"],
        "resolution": ["0.5K", "512", "1K", "2K", "4K"],
        "rendering_speed": ["TURBO", "FLASH", "DEFAULT", "BALANCED", "QUALITY"],
    }
    published = sizes("1024x1024 1024x768 1024x1536 1536x1024 1920x1080 2560x1440 3840x2160 512x512 2048x2048")

    def any_size() -> ImageSize:
        if chance.random() < 0.5:
            return chance.choice(published)
        return ImageSize(chance.randint(64, 4096), chance.randint(64, 4096))

    entries = recompute.entries()
    assert len(entries) == len(list(books))
    for (book, sku, date), entry in entries.items():
        price = books.price(book, sku, datetime.fromisoformat(date).replace(tzinfo=UTC))
        for _ in range(12):
            outputs = [any_size() for _ in range(chance.randint(1, 4))]
            inputs = [any_size() for _ in range(chance.choice((0, 0, 1, 3)))]
            attributes = {name: chance.choice(values) for name, values in words.items() if chance.random() < 0.7}
            tokens = {name: chance.randint(0, 20_000) for name in TOKENS}
            # fal reports no tokens: its token prices count by the formula
            counted = {} if book == "fal" else tokens
            steps = chance.choice((None, 1, 4, 7, 28, 50))
            seconds = f"{chance.randint(1, 99_999)}e-3"
            usage = Usage(
                tuple(outputs), tuple(inputs), counted, chance.randint(1, 4), Decimal(seconds), steps, attributes
            )
            if book == "fal" and "2.5" in sku:
                q = {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96, "other": 96}
                quality = attributes.get("quality", "high")
                made = sum(recompute.tokens_of(q[quality], one.width, one.height) for one in outputs)
                tokens = {"image_output": made}
            independent = recompute.nanos(
                entry,
                [(one.width, one.height) for one in outputs],
                [(one.width, one.height) for one in inputs],
                attributes,
                tokens,
                steps,
                seconds,
                usage.requests,
            )
            assert rate(price, usage).total_nanos == independent, (book, sku, usage)
