"""Pictures read from their bytes, against pictures that Pillow wrote."""

import base64
import io
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pricing import ImageSize
from router import media
from router.api import fields
from router.blob import Blob


def picture(size: tuple[int, int] = (60, 40), mode: str = "RGB", form: str = "png", **options: Any) -> bytes:
    image = Image.effect_noise(size, 80).convert("RGB").convert(mode)
    if "A" in mode:
        image.putalpha(Image.effect_noise(size, 90))
    out = io.BytesIO()
    image.save(out, form.upper(), **options)
    return out.getvalue()


def read(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("png", {}),
    "png-palette": ("png", {"mode": "P"}),
    "png-alpha": ("png", {"mode": "RGBA"}),
    "png-grey": ("png", {"mode": "L"}),
    "jpeg": ("jpeg", {}),
    "jpeg-progressive": ("jpeg", {"progressive": True}),
    "jpeg-grey": ("jpeg", {"mode": "L"}),
    "jpeg-cmyk": ("jpeg", {"mode": "CMYK"}),
    "jpeg-metadata": ("jpeg", {"exif": b"Exif\0\0" + b"\xff\xd8\xff\xd9" * 10_000, "icc_profile": b"p" * 150_000}),
    "webp-lossy": ("webp", {}),
    "webp-lossless": ("webp", {"lossless": True}),
    "webp-alpha": ("webp", {"mode": "RGBA"}),
    "webp-extended": ("webp", {"icc_profile": b"p" * 300}),
    "gif": ("gif", {}),
    "avif": ("avif", {}),
    "avif-alpha": ("avif", {"mode": "RGBA"}),
    "bmp": ("bmp", {}),
    "tiff": ("tiff", {}),
    "tiff-compressed": ("tiff", {"compression": "tiff_lzw"}),
}
variants = pytest.mark.parametrize(("form", "options"), VARIANTS.values(), ids=list(VARIANTS))


@variants
@pytest.mark.parametrize("size", [(1, 1), (60, 40), (333, 777)])
def test_format_and_size(form: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    data = picture(size, form=form, **options)
    expected = media.Probe(form, ImageSize(*size))
    assert media.probe(data) == expected
    assert media.probe(memoryview(data)) == expected
    assert media.check(data) == expected
    assert media.probe_base64(Blob(base64.b64encode(data))) == expected
    text = base64.b64encode(data)
    assert media.probe_base64(Blob(*(text[at : at + 7] for at in range(0, len(text), 7)))) == expected


@variants
def test_what_is_cut_off_is_refused(form: str, options: dict[str, Any]) -> None:
    data = picture((100, 80), form=form, **options)
    lengths = {0, 1, 3, 8, 12, 16, 24, 30, 60, 200, len(data) // 2}
    if form != "tiff":  # whose last bytes may be a fact that nobody needs
        lengths |= {len(data) - 20, len(data) - 2, len(data) - 1}
    for length in lengths:
        with pytest.raises(media.BadImage) as caught:
            media.check(data[:length])
        assert caught.value.kind in ("empty", "unknown", "truncated")


@variants
def test_one_in_pieces_is_judged_like_one_in_one(form: str, options: dict[str, Any]) -> None:
    data = picture(form=form, **options)
    for whole in (data, data[:-1], data + b"\0" * 9, data[: len(data) // 2], b"x" + data):
        for at in {1, 2, 7, 12, 15, 29, 300, len(whole) // 2, len(whole) - 13, len(whole) - 1}:
            pieces = Blob(whole[:at], whole[at : at + 5], whole[at + 5 :])
            assert judged(pieces) == judged(whole), at


def judged(data: bytes | Blob) -> object:
    try:
        return media.check(data)
    except media.BadImage as error:
        return error.kind


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_something_behind_the_end_is_fine(form: str) -> None:
    assert media.check(picture(form=form) + b"trailing \0 bytes").format == form


@pytest.mark.parametrize(
    "data",
    [b"", b"raw file contents", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\xff\xd8\xff", b"GIF89a",
     b"BM" + b"\0" * 50, b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WAVEfmt ", b"II*\0" + b"\xff" * 40,
     b"\x89PNG\r\n\x1a\n" * 4, b"\0\0\0\x20ftypheic" + b"\0" * 40, b"\0\0\0\x1cftypavif" + b"\0" * 40,
     b"\xff\xd8" + b"\xff" * 5000],
    ids=repr,
)  # fmt: skip
def test_no_pictures(data: bytes) -> None:
    assert media.probe(data) is None
    with pytest.raises(media.BadImage):
        media.check(data)


def test_a_picture_without_extent_is_none() -> None:
    data = bytearray(picture())
    data[16:20] = b"\0\0\0\0"
    assert media.probe(bytes(data)) is None


def test_a_bomb_is_refused_by_its_header() -> None:
    data = bytearray(picture())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(media.BadImage, match="60000x60000") as caught:
        media.check(bytes(data))
    assert caught.value.kind == "too_large"
    assert media.check(picture(), max_pixels=2400)
    with pytest.raises(media.BadImage):
        media.check(picture(), max_pixels=2399)


def test_broken_base64_is_no_picture() -> None:
    assert media.probe_base64(Blob(b"!!!!")) is None
    assert media.probe_base64(Blob()) is None
    assert media.probe_base64(Blob("é".encode() * 100)) is None


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([picture((20, 10), form=form, **options) for form, options in VARIANTS.values()]),
    st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=4)), max_size=4),
    st.floats(0, 1),
)
def test_damage_is_refused_or_survived(data: bytes, hits: list[tuple[float, bytes]], cut: float) -> None:
    damaged = bytearray(data)
    for place, content in hits:
        at = int(place * len(damaged))
        damaged[at : at + len(content)] = content
    damaged = damaged[: int(len(damaged) * cut)] if cut < 0.9 else damaged
    try:
        found = media.check(bytes(damaged))
    except media.BadImage:
        return
    assert found.size.pixels <= media.MAX_PIXELS
    assert media.probe(bytes(damaged)) == found


def test_headers_are_read_from_the_head_alone() -> None:
    """Large pictures are measured without being decoded: the rest of them may be anything."""
    data = picture((300, 300))
    assert media.probe(data[:64]) == media.Probe("png", ImageSize(300, 300))
    assert media.probe_base64(Blob(base64.b64encode(data)[:4096] + b"!" * 100_000)) == media.probe(data)


# --- masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "alpha"),
    [
        (picture(mode="RGBA"), True),
        (picture(mode="LA"), True),
        (picture(mode="RGB"), False),
        (picture(mode="P"), False),
        (picture(mode="P", transparency=0), True),
        (picture(mode="RGB", transparency=(0, 0, 0)), True),
        (picture(form="jpeg"), False),
        (b"", False),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, False),
    ],
)
def test_has_alpha(data: bytes, alpha: bool) -> None:
    assert media.has_alpha(data) is alpha


@pytest.mark.parametrize("edit_white", [True, False])
def test_a_mask_is_painted(edit_white: bool) -> None:
    image = Image.new("RGBA", (3, 1), (9, 9, 9, 255))
    image.putpixel((0, 0), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 1))  # hardly visible, but not fully transparent: kept
    out = io.BytesIO()
    image.save(out, "PNG")
    painted = read(media.painted(out.getvalue(), edit_white=edit_white))
    expected = [255, 0, 0] if edit_white else [0, 255, 255]
    assert (painted.mode, [painted.getpixel((x, 0)) for x in range(3)]) == ("L", expected)


# --- conversion -------------------------------------------------------------------------------------------------


@variants
@pytest.mark.parametrize("wanted", media.CONVERTIBLE)
def test_convert(form: str, options: dict[str, Any], wanted: str) -> None:
    if form == "jpeg" and "exif" in options:
        options = {}
    data = picture((40, 30), form=form, **options)
    assert media.check(media.convert(data, wanted)) == media.Probe(wanted, ImageSize(40, 30))


@pytest.mark.parametrize("wanted", ["png", "webp", "avif"])
def test_transparency_survives(wanted: str) -> None:
    source = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    out = io.BytesIO()
    source.save(out, "PNG")
    assert read(media.convert(out.getvalue(), wanted)).convert("RGBA").getpixel((4, 4))[3] == 0  # type: ignore[index]
    assert read(media.convert(out.getvalue(), "jpeg")).getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("wanted", ["jpeg", "webp", "avif"])
def test_compression_makes_smaller(wanted: str) -> None:
    data = picture((200, 200))
    sizes = [len(media.convert(data, wanted, compression=quality)) for quality in (0, 40, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


@pytest.mark.parametrize("target", [(64, 64), (200, 20), (20, 200), (1, 1), (100, 80)])
def test_exact_size(target: tuple[int, int]) -> None:
    data = media.convert(picture((100, 80)), "png", size=ImageSize(*target))
    assert media.check(data).size == ImageSize(*target)


def test_scaling_keeps_the_centre() -> None:
    source = Image.new("RGB", (90, 30), "black")
    source.paste("white", (30, 0, 60, 30))
    out = io.BytesIO()
    source.save(out, "PNG")
    square = read(media.convert(out.getvalue(), "png", size=ImageSize(15, 15)))
    assert all(square.getpixel((x, 7)) == (255, 255, 255) for x in (3, 7, 11))


def test_pictures_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    out = io.BytesIO()
    Image.new("RGB", (30, 10)).save(out, "JPEG", exif=exif)
    assert media.check(media.convert(out.getvalue(), "png")).size == ImageSize(10, 30)


def test_what_cannot_be_converted() -> None:
    with pytest.raises(ValueError, match="svg"):
        media.convert(picture(), "svg")
    with pytest.raises(media.BadImage):
        media.convert(b"raw", "png")
    data = bytearray(picture((200, 200), form="webp"))
    random.Random(1).shuffle(body := data[40:])
    with pytest.raises(media.BadImage):
        media.convert(bytes(data[:20] + b"\0" * 10 + body + b"\0" * 10), "png")


def test_every_format_that_can_be_asked_for_can_be_written() -> None:
    """Otherwise a picture would be paid for and then not delivered."""
    assert set(fields.WORDS["output_format"]) <= set(media.CONVERTIBLE)
