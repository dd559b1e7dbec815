"""Pictures are functions of the request: exact in size and format, equal when it is equal, different when not."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from PIL import Image, ImageChops, ImageStat

from router.sandbox.pictures import Brief, Painter, measure, paint

PLAIN = Brief("flux", "A serene mountain landscape at sunset", 42, (320, 200))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size", [(1, 1), (16, 700), (512, 512), (1023, 769)])
def test_size_and_format_are_as_asked(format: str, size: tuple[int, int]) -> None:
    data = paint(replace(PLAIN, size=size, format=format))
    assert opened(data).format == format.upper()
    assert measure(data) == size


def test_equal_briefs_give_equal_bytes_and_every_part_of_a_brief_counts() -> None:
    first = paint(PLAIN)
    assert paint(replace(PLAIN)) == first
    for change in ({"model": "x"}, {"prompt": "x"}, {"seed": 43}, {"index": 1}, {"sources": (first,)}, {"blank": True}):
        assert paint(replace(PLAIN, **change)) != first, change


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_no_metadata(format: str) -> None:
    image = opened(paint(replace(PLAIN, format=format)))
    assert not image.getexif()
    assert not {"exif", "icc_profile", "comment", "xmp"} & set(image.info)
    assert getattr(image, "text", {}) == {}


def test_an_edit_keeps_its_first_source_in_sight() -> None:
    source = paint(replace(PLAIN, prompt="a green forest"))
    other = paint(replace(PLAIN, prompt="desert sand"))
    edit = replace(PLAIN, prompt="Add a starry night sky to this image", sources=(source,))

    def distance(one: bytes, two: bytes) -> float:
        edges = [opened(data).convert("L").resize((64, 40)) for data in (one, two)]
        return sum(ImageStat.Stat(ImageChops.difference(*edges)).mean)

    edited = paint(edit)
    assert edited != source
    assert distance(edited, paint(replace(edit, sources=(other,)))) > 2  # another source, another edit
    lower = opened(edited).convert("RGB").crop((0, 150, 320, 200))
    of_source = opened(source).convert("RGB").crop((0, 150, 320, 200))
    assert max(ImageStat.Stat(ImageChops.difference(lower, of_source)).mean) < 70  # the ground is still the source's


def test_further_sources_are_shown() -> None:
    source = paint(PLAIN)
    alone = paint(replace(PLAIN, sources=(source,)))
    assert paint(replace(PLAIN, sources=(source, source))) != alone


def test_transparent_sky_only_where_the_format_can() -> None:
    assert opened(paint(replace(PLAIN, transparent=True))).getchannel("A").getextrema() == (0, 255)
    assert opened(paint(replace(PLAIN, transparent=True, format="jpeg"))).mode == "RGB"


def test_quoted_words_are_written() -> None:
    silent = replace(PLAIN, size=(400, 300), prompt="a page reading nothing")
    told = paint(replace(silent, prompt="a page reading 'Chapter One'"))
    paper = (248, 242, 228)  # what the words stand on
    counts = {color: count for count, color in opened(told).getcolors(1 << 20) or []}
    assert counts.get(paper, 0) > 5000


def test_partials_sharpen_towards_the_final_picture() -> None:
    final = opened(paint(PLAIN)).convert("RGB")

    def away(detail: float) -> float:
        rough = opened(paint(replace(PLAIN, detail=detail))).convert("RGB")
        return sum(ImageStat.Stat(ImageChops.difference(final, rough)).mean)

    assert away(0.25) > away(0.5) > away(0.75) > 0


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5000, 5000)])
def test_sizes_nobody_makes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not a size"):
        paint(replace(PLAIN, size=size))


@pytest.mark.parametrize("bad", [b"", b"Example data", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_picture(bad: bytes) -> None:
    assert measure(bad) is None
    with pytest.raises(ValueError, match="unreadable"):
        paint(replace(PLAIN, sources=(bad,)))


@pytest.mark.anyio
async def test_the_painter_remembers_within_its_bounds() -> None:
    painter = Painter(cache_bytes=1)
    one, two = await painter.paint(PLAIN), await painter.paint(replace(PLAIN, seed=1))
    assert await painter.paint(PLAIN) == one != two
    assert len(painter._cache) == 1
    painter.close()
