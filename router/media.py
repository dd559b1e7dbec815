"""Pictures as bytes: what they are, how large, whether they are whole, and turning one into another.

Reading a header costs about a microsecond and never decodes pixels. Everything named ``convert``, ``fitted`` or
``painted`` decodes with Pillow, costs milliseconds, and belongs in a thread.
"""

from __future__ import annotations

import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct, unpack_from
from struct import error as StructError

import pybase64
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from pricing import ImageSize
from router.blob import Blob

Bytes = bytes | bytearray | memoryview

MAX_PIXELS = 2**27
"""Most pixels of a picture that is accepted or decoded (134 megapixels, 512 MiB as RGBA)."""

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # one limit for header checks and for Pillow's own

MEDIA_TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "avif": "image/avif",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
}
"""Formats whose header is understood, and their media types."""

CONVERTIBLE = ("png", "jpeg", "webp", "gif", "avif")
"""Formats that ``convert`` writes."""

_BE16, _LE16 = Struct(">H"), Struct("<H")
_BE32, _LE32 = Struct(">I"), Struct("<I")
_BE32x2 = Struct(">II")
_LE32x2_SIGNED = Struct("<ii")

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True, slots=True)
class Probe:
    """What a picture's header says."""

    format: str  # a key of MEDIA_TYPES
    size: ImageSize


class BadImage(ValueError):
    """These bytes cannot be used as a picture. ``kind`` is empty, unknown, truncated or too_large."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


# --- what it is, from its first bytes ---------------------------------------------------------------------------


def sniff(data: Bytes) -> str | None:
    """The format that the first 16 bytes announce, or None."""
    head = bytes(data[:16])
    if head[:8] == _PNG:
        return "png"
    if head[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:6] in (b"GIF89a", b"GIF87a"):
        return "gif"
    if head[4:8] == b"ftyp" and _is_avif(data):
        return "avif"
    if head[:2] == b"BM" and len(head) > 6 and head[6:10] == b"\0\0\0\0":
        return "bmp"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "tiff"
    return None


def probe(data: Bytes) -> Probe | None:
    """Format, width and height from the header; None if this is no picture we know or its header is cut off."""
    form = sniff(data)
    if form is None:
        return None
    try:
        size = _SIZES[form](data)
    except (IndexError, ValueError, OverflowError, StructError):
        return None
    if size is None or size[0] <= 0 or size[1] <= 0:
        return None
    return _found(form, size)


@lru_cache(4096)
def _found(form: str, size: tuple[int, int]) -> Probe:
    return Probe(form, ImageSize(*size))


def probe_base64(text: Blob) -> Probe | None:
    """The same from base64 text, decoding only as much of its head as the header needs (a multiple of 4 each time)."""
    for length in (64, 512, 4096, 65536, 1048576, len(text) + 3):
        head = text.head(length - length % 4)
        try:
            # The standard decoder keeps the interpreter lock: on a few bytes, giving it away costs more than the work.
            data = binascii.a2b_base64(head) if length <= 4096 else pybase64.b64decode(head)
        except ValueError:
            return None
        found = probe(data)
        if found is not None or length >= len(text) or sniff(data) is None:
            return found
    return None


def _png_size(data: Bytes) -> tuple[int, int] | None:
    if bytes(data[12:16]) != b"IHDR":
        return None
    return _BE32x2.unpack_from(data, 16)


_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))


def _jpeg_frame(data: Bytes) -> tuple[int, int, int] | None:
    """Width, height, and where the frame header ends."""
    at = 2
    while True:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _SOF:
            height, width = _BE16.unpack_from(data, at + 5)[0], _BE16.unpack_from(data, at + 7)[0]
            return width, height, at + 2 + _BE16.unpack_from(data, at + 2)[0]
        elif marker in (0xD9, 0xDA):
            return None
        else:
            at += 2 + _BE16.unpack_from(data, at + 2)[0]


def _jpeg_size(data: Bytes) -> tuple[int, int] | None:
    frame = _jpeg_frame(data)
    return frame[:2] if frame else None


def _webp_size(data: Bytes) -> tuple[int, int] | None:
    kind = bytes(data[12:16])
    if kind == b"VP8X":
        return 1 + _three(data, 24), 1 + _three(data, 27)
    if kind == b"VP8L":
        if data[20] != 0x2F:
            return None
        bits = _LE32.unpack_from(data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        if bytes(data[23:26]) != b"\x9d\x01\x2a":
            return None
        return _LE16.unpack_from(data, 26)[0] & 0x3FFF, _LE16.unpack_from(data, 28)[0] & 0x3FFF
    return None


def _three(data: Bytes, at: int) -> int:
    return data[at] | data[at + 1] << 8 | data[at + 2] << 16


def _gif_size(data: Bytes) -> tuple[int, int] | None:
    return _LE16.unpack_from(data, 6)[0], _LE16.unpack_from(data, 8)[0]


def _bmp_size(data: Bytes) -> tuple[int, int] | None:
    header = _LE32.unpack_from(data, 14)[0]
    if header == 12:
        return _LE16.unpack_from(data, 18)[0], _LE16.unpack_from(data, 20)[0]
    if header < 40:
        return None
    width, height = _LE32x2_SIGNED.unpack_from(data, 18)
    return width, abs(height)  # a negative height means that rows run from the top


def _tiff_size(data: Bytes) -> tuple[int, int] | None:
    tags = _tiff_tags(data)
    width, height = tags.get(256, (0,)), tags.get(257, (0,))
    return width[0], height[0]


_TIFF_TYPES = {3: 2, 4: 4}  # SHORT and LONG, and their bytes


def _tiff_tags(data: Bytes) -> dict[int, tuple[int, ...]]:
    """Integers of the first directory: 256 and 257 are the sides, 273/324 where the pixels lie, 279/325 how long."""
    order = "<" if data[0] == 0x49 else ">"
    directory = int(unpack_from(order + "I", data, 4)[0])
    found: dict[int, tuple[int, ...]] = {}
    entries = int(unpack_from(order + "H", data, directory)[0])
    unpack_from(order + "I", data, directory + 2 + 12 * entries)  # where the next directory is: the end of this one
    for entry in range(min(entries, 512)):
        at = directory + 2 + 12 * entry
        tag, kind, count = unpack_from(order + "HHI", data, at)
        width = _TIFF_TYPES.get(kind)
        if tag not in (256, 257, 273, 279, 324, 325) or width is None or not 0 < count <= len(data) // width:
            continue
        where = at + 8 if count * width <= 4 else int(unpack_from(order + "I", data, at + 8)[0])
        found[tag] = unpack_from(f"{order}{count}{'H' if width == 2 else 'I'}", data, where)
    return found


def _is_avif(data: Bytes) -> bool:
    box = _BE32.unpack_from(data, 0)[0] if len(data) >= 4 else 0
    brands = bytes(data[8 : min(box, 256)])
    return any(brands[at : at + 4] in (b"avif", b"avis") for at in range(0, len(brands), 4))


def _avif_size(data: Bytes) -> tuple[int, int] | None:
    """The largest spatial extent among the items' properties: tiles and thumbnails are smaller than the picture."""
    boxes = _boxes(data, 0, len(data))
    meta = next(((start, end) for kind, start, end in boxes if kind == b"meta"), None)
    if meta is None:
        return None
    content = bytes(data[meta[0] : meta[1]])
    best: tuple[int, int] | None = None
    at = content.find(b"ispe")
    while at >= 0:
        size: tuple[int, int] = _BE32x2.unpack_from(content, at + 8)
        if best is None or size[0] * size[1] > best[0] * best[1]:
            best = size
        at = content.find(b"ispe", at + 4)
    return best


def _boxes(data: Bytes, start: int, end: int) -> list[tuple[bytes, int, int]]:
    """ISO base media boxes: kind, start and end of the content. The last may end behind the data."""
    boxes = []
    while start + 8 <= end:
        length, kind, header = _BE32.unpack_from(data, start)[0], bytes(data[start + 4 : start + 8]), 8
        if length == 1 and start + 16 <= end:
            length, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        if length == 0:
            length = end - start
        if length < header:
            break
        boxes.append((kind, start + header, start + length))
        start += length
    return boxes


_SIZES: dict[str, Callable[[Bytes], tuple[int, int] | None]] = {
    "png": _png_size,
    "jpeg": _jpeg_size,
    "webp": _webp_size,
    "gif": _gif_size,
    "avif": _avif_size,
    "bmp": _bmp_size,
    "tiff": _tiff_size,
}


# --- whether it is whole ----------------------------------------------------------------------------------------


def check(data: Bytes | Blob, *, max_pixels: int = MAX_PIXELS) -> Probe:
    """The header of a picture that looks whole, without decoding it. BadImage says why it cannot be used."""
    if not data:
        raise BadImage("empty", "The file is empty.")
    data = data if isinstance(data, Blob) else Blob(bytes(data))
    first = next(iter(data))
    found = probe(first)
    if found is None and len(first) < len(data):
        first = bytes(data)
        found = probe(first)
    if found is None:
        if sniff(first) is not None:
            raise BadImage("truncated", "The image file is damaged or cut off.")
        raise BadImage("unknown", "The file is not an image in a supported format (PNG, JPEG, WebP, GIF, AVIF).")
    if found.size.pixels > max_pixels:
        most = max_pixels // 1_000_000
        raise BadImage("too_large", f"The image has {found.size} pixels; at most {most} megapixels are accepted.")
    if not _ends_well(found.format, first, data) and not _whole(found.format, bytes(data)):
        raise BadImage("truncated", "The image file is damaged or cut off.")
    return found


def _ends_well(form: str, first: Bytes, data: Blob) -> bool:
    """Whether its beginning, its last bytes and its length alone show that it is whole: the rest need not be joined."""
    if form == "png":
        return data.tail(len(_PNG_END)) == _PNG_END
    if form == "jpeg":
        frame = _jpeg_frame(first)
        return frame is not None and data.tail(2) == b"\xff\xd9" and len(data) - 2 >= frame[2]
    if form == "webp":
        return len(data) >= 8 + int(_LE32.unpack_from(first, 4)[0])
    return form == "gif" and data.tail(1) == b";"


def _whole(form: str, data: bytes) -> bool:
    if form == "png":
        return data.endswith(_PNG_END) or _png_walk(data)
    if form == "jpeg":
        frame = _jpeg_frame(data)  # the thumbnail inside the metadata has an end marker of its own, before the frame
        return frame is not None and data.rfind(b"\xff\xd9") >= frame[2]
    if form == "webp":
        return len(data) >= 8 + int(_LE32.unpack_from(data, 4)[0])
    if form == "gif":
        return data.rstrip(b"\0").endswith(b";")
    if form == "avif":
        boxes = _boxes(data, 0, len(data))
        return bool(boxes) and boxes[-1][2] <= len(data) and any(kind in (b"mdat", b"idat") for kind, *_ in boxes)
    if form == "bmp":
        return len(data) >= int(_LE32.unpack_from(data, 2)[0])
    tags = _tiff_tags(data)
    ends = [
        start + length
        for starts, lengths in ((273, 279), (324, 325))
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False)
    ]
    return bool(ends) and max(ends) <= len(data)


def _png_walk(data: bytes) -> bool:
    """Whether a chain of chunks leads to IEND: the file may have something behind its end."""
    at, drawn = 8, False
    while at + 12 <= len(data):
        length, kind = _BE32.unpack_from(data, at)[0], data[at + 4 : at + 8]
        drawn = drawn or kind == b"IDAT"
        at += 12 + length
        if kind == b"IEND":
            return drawn and at <= len(data)
    return False


def has_alpha(data: Bytes) -> bool:
    """Whether a PNG has an alpha channel or a transparent colour, from its chunks before the pixels."""
    if sniff(data) != "png" or len(data) < 26:
        return False
    if data[25] in (4, 6):
        return True
    at = 8
    while at + 8 <= len(data):
        kind = bytes(data[at + 4 : at + 8])
        if kind == b"tRNS":
            return True
        if kind == b"IDAT":
            return False
        at += 12 + int(_BE32.unpack_from(data, at)[0])
    return False


# --- turning one into another (decodes; use a thread) -----------------------------------------------------------


def opened(data: bytes) -> Image.Image:
    """The decoded picture, upright. BadImage if the bytes turn out not to be one."""
    check(data)
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return ImageOps.exif_transpose(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage("truncated", "The image file is damaged or cut off.") from error


def convert(
    data: bytes,
    format: str,
    *,
    compression: int | None = None,
    size: ImageSize | None = None,
) -> bytes:
    """The picture in another format, and with exactly ``size`` if one is given (scaled to cover, then centre-cut).

    ``compression`` is OpenAI's word for the quality of JPEG, WebP and AVIF, 0 to 100; None means 95.
    BadImage if the bytes are no picture, ValueError for a format that cannot be written.
    """
    if format not in CONVERTIBLE:
        raise ValueError(f"cannot write {format}")
    image = opened(data)
    if size is not None and image.size != (size.width, size.height):
        image = fitted(image, size)
    quality = 95 if compression is None else compression
    profile = image.info.get("icc_profile")
    keep = {"icc_profile": profile} if profile and image.mode not in ("CMYK", "YCCK") else {}
    out = io.BytesIO()
    if format == "jpeg":
        _flat(image).save(out, "JPEG", quality=max(1, quality), **keep)
    elif format == "png":
        _plain(image).save(out, "PNG", compress_level=4, **keep)
    elif format == "webp":
        _plain(image).save(out, "WEBP", quality=quality, method=4, **keep)
    elif format == "avif":
        _plain(image).save(out, "AVIF", quality=quality, speed=8, **keep)
    else:
        _plain(image).save(out, "GIF")
    return out.getvalue()


def fitted(image: Image.Image, size: ImageSize) -> Image.Image:
    """Scaled so that it covers ``size``, then cut around the centre."""
    if image.mode == "P":
        image = image.convert("RGBA")
    return ImageOps.fit(image, (size.width, size.height), Image.Resampling.LANCZOS)


def painted(mask: bytes, *, edit_white: bool = True) -> bytes:
    """OpenAI's mask (alpha 0 = edit) as a black and white PNG for providers that read brightness."""
    alpha = opened(mask).convert("RGBA").getchannel("A")
    edit = alpha.point([255 if value == 0 else 0 for value in range(256)])
    out = io.BytesIO()
    (edit if edit_white else ImageChops.invert(edit)).save(out, "PNG", compress_level=4)
    return out.getvalue()


def _plain(image: Image.Image) -> Image.Image:
    """RGB, RGBA or grey: modes that every format takes."""
    if image.mode in ("RGB", "RGBA", "L"):
        return image
    transparent = image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def _flat(image: Image.Image) -> Image.Image:
    """Without transparency, on white: what a viewer shows behind it."""
    image = _plain(image)
    if image.mode != "RGBA":
        return image
    ground = Image.new("RGB", image.size, "white")
    ground.paste(image, mask=image.getchannel("A"))
    return ground
