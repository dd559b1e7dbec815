"""Pictures that look like something, made from words.

A picture is a pure function of (model, prompt, seed, index, size, format, sources): the same request gives the same
bytes, on every machine with the same Pillow. New pictures are layered landscapes whose palette, sky and ground follow
the prompt; words in quotes are written on them. An edit keeps its first source in sight and changes light and sky;
further sources appear as small prints along the bottom. No metadata is written.

Drawing and encoding take 10 to 40 ms a megapixel; :class:`Painter` does them in its own threads and keeps a bounded
cache, so that the event loop never waits.
"""

from __future__ import annotations

import asyncio
import colorsys
import hashlib
import io
import math
import random
import re
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

Color = tuple[int, int, int]
Size = tuple[int, int]

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
MAX_PIXELS = 16_777_216  # of a picture that is made
MAX_SOURCE_PIXELS = 50_000_000  # of a picture that is sent in


@dataclass(frozen=True, slots=True)
class Brief:
    """Everything that decides a picture's bytes. ``sources`` are encoded pictures; their bytes count."""

    model: str
    prompt: str
    seed: int
    size: Size
    format: str = "png"  # png, jpeg, webp
    index: int = 0
    sources: tuple[bytes, ...] = ()
    quality: int = 90  # jpeg and webp
    transparent: bool = False  # png and webp: the sky is left out
    detail: float = 1.0  # below 1 a partial picture: the same scene, not yet sharp
    blank: bool = False  # all black, as some providers deliver what they refuse

    def key(self) -> bytes:
        digest = hashlib.sha256()
        for part in (
            self.model,
            self.prompt,
            self.seed,
            self.index,
            self.size,
            self.format,
            self.quality,
            self.transparent,
            self.detail,
            self.blank,
        ):
            digest.update(repr(part).encode() + b"\0")
        for source in self.sources:
            digest.update(hashlib.sha256(source).digest())
        return digest.digest()


class Painter:
    """Paints briefs in threads; keeps up to ``cache_bytes`` of finished files."""

    def __init__(self, *, threads: int = 2, cache_bytes: int = 64 << 20) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sandbox-painter")
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()
        self._cached = 0
        self._limit = cache_bytes

    async def paint(self, brief: Brief) -> bytes:
        """The encoded picture. Raises ValueError for a size nobody makes or an unreadable source."""
        key = brief.key()
        if (found := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return found
        data = await asyncio.get_running_loop().run_in_executor(self._pool, paint, brief)
        if key not in self._cache:
            self._cache[key] = data
            self._cached += len(data)
            while self._cached > self._limit and len(self._cache) > 1:
                self._cached -= len(self._cache.popitem(last=False)[1])
        return data

    async def measure(self, data: bytes) -> Size | None:
        """Width and height of an encoded picture; None if it is none that Pillow knows."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, measure, data)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def measure(data: bytes) -> Size | None:
    """Width and height of an encoded picture; None if it is none that Pillow knows. Reads the header only."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size if image.width * image.height <= MAX_SOURCE_PIXELS else None
    except _UNREADABLE:
        return None


def paint(brief: Brief) -> bytes:
    """Draw and encode. Runs in any thread. Raises ValueError for a size nobody makes or an unreadable source."""
    width, height = brief.size
    if not (width > 0 and height > 0 and width * height <= MAX_PIXELS):
        raise ValueError(f"{width}x{height} is not a size of 1 to {MAX_PIXELS} pixels")
    if brief.blank:
        return encode(Image.new("RGB", brief.size), brief.format, brief.quality)
    mood = _mood(brief)
    image = _retouch(brief, mood) if brief.sources else _landscape(brief, mood)
    if words := _quoted(brief.prompt):
        _write(image, words, mood)
    if brief.detail < 1:
        image = _unfinished(image, brief.detail)
    return encode(image, brief.format, brief.quality)


_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def encode(image: Image.Image, format: str, quality: int = 90) -> bytes:
    out = io.BytesIO()
    if format == "png":
        image.save(out, "PNG", compress_level=1, compress_type=3)  # run lengths suit flat shapes
    elif format == "jpeg":
        image.convert("RGB").save(out, "JPEG", quality=max(1, min(95, quality)))
    elif format == "webp":
        image.save(out, "WEBP", quality=quality, method=0)
    else:
        raise ValueError(f"cannot write {format}")
    return out.getvalue()


# What the prompt asks for ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mood:
    zenith: Color
    horizon: Color
    light: Color  # sun or moon
    near: Color  # nearest ridge
    dark: bool
    water: bool
    random: random.Random


@dataclass(frozen=True, slots=True)
class _Palette:
    words: str
    zenith: Color
    horizon: Color
    light: Color
    near: Color
    dark: bool = False


_PALETTES = (
    _Palette("sunset|dusk|evening|autumn|fire", (52, 44, 96), (250, 152, 92), (255, 226, 160), (42, 26, 52)),
    _Palette("night|star|moon|galaxy|space|dark", (8, 10, 34), (48, 62, 120), (238, 240, 255), (6, 8, 20), True),
    _Palette("sunrise|dawn|morning|spring|blossom", (120, 170, 222), (255, 208, 190), (255, 246, 214), (58, 62, 88)),
    _Palette("forest|jungle|garden|green|leaf|tree", (134, 186, 170), (232, 240, 200), (255, 252, 220), (20, 56, 44)),
    _Palette("desert|sand|dune|vintage|typewriter", (214, 168, 118), (250, 226, 180), (255, 246, 220), (96, 54, 34)),
    _Palette("snow|winter|ice|arctic|white", (120, 152, 190), (226, 236, 246), (255, 255, 250), (72, 96, 128)),
    _Palette("sea|ocean|lake|river|water|beach|blue", (62, 128, 196), (198, 230, 240), (255, 250, 224), (16, 58, 86)),
    _Palette("city|neon|cyber|robot|street", (26, 14, 58), (224, 74, 148), (120, 240, 255), (12, 8, 30), True),
)


def _mood(brief: Brief) -> _Mood:
    words = brief.prompt.lower()
    identity = f"{brief.model}\0{brief.prompt}\0{brief.seed}\0{brief.index}"
    rng = random.Random(hashlib.sha256(identity.encode()).digest())  # noqa: S311 - not for secrets
    palette = next((each for each in _PALETTES if re.search(rf"\b(?:{each.words})", words)), None)
    if palette is None:
        hue = rng.random()
        palette = _Palette(
            "",
            _hsv(hue, 0.55, 0.62),
            _hsv(hue + 0.08, 0.28, 0.96),
            _hsv(hue + 0.12, 0.12, 1.0),
            _hsv(hue - 0.05, 0.6, 0.22),
        )
    turn = rng.uniform(-14, 14)  # siblings of one prompt differ a little in tone as well as in shape
    return _Mood(
        _shift(palette.zenith, turn),
        _shift(palette.horizon, turn / 2),
        palette.light,
        _shift(palette.near, -turn / 2),
        palette.dark or bool(re.search(r"\b(?:starry|night)", words)),
        bool(re.search(r"\b(?:sea|ocean|lake|river|water|beach)", words)) or rng.random() < 0.25,
        rng,
    )


def _hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _shift(color: Color, by: float) -> Color:
    red, green, blue = color
    return _byte(red + by), _byte(green + by * 0.4), _byte(blue - by * 0.6)


def _byte(part: float) -> int:
    return max(0, min(255, round(part)))


def _mix(one: Color, other: Color, share: float) -> Color:
    (r, g, b), (other_r, other_g, other_b) = one, other
    return round(r + (other_r - r) * share), round(g + (other_g - g) * share), round(b + (other_b - b) * share)


def _quoted(prompt: str) -> str:
    """The words in quotes, which image models are asked to write: "paper reading 'Chapter One'"."""
    match = re.search(r"['\"‘“]([^'\"‘’“”]{1,40})['\"’”]", prompt)
    return match.group(1).strip() if match else ""


# Drawing -----------------------------------------------------------------------------------------------------------


def _gradient(size: Size, top: Color, bottom: Color) -> Image.Image:
    """Vertical gradient, made at one column and stretched: cheap at any size."""
    height = size[1]
    column = Image.new("RGB", (1, height))
    column.putdata([_mix(top, bottom, (y / max(1, height - 1)) ** 0.8) for y in range(height)])
    return column.resize(size)


def _landscape(brief: Brief, mood: _Mood) -> Image.Image:
    width, height = brief.size
    rng = mood.random
    sky = _gradient(brief.size, mood.zenith, mood.horizon)
    if brief.transparent and brief.format != "jpeg":
        sky = Image.new("RGBA", brief.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(sky)
    if mood.dark:
        _stars(draw, (width, round(height * 0.7)), rng)
    _light(sky, draw, mood, (round(width * rng.uniform(0.2, 0.8)), round(height * rng.uniform(0.22, 0.45))))
    layers = 5
    for layer in range(layers):
        depth = (layer + 1) / layers
        color = _mix(mood.horizon, mood.near, depth**1.1)
        base = height * (0.46 + 0.42 * depth * depth)
        _ridge(draw, brief.size, base, height * (0.20 - 0.11 * depth), color, rng)
    if mood.water:
        _water(sky, mood, round(height * 0.84))
    return sky


def _stars(draw: ImageDraw.ImageDraw, area: Size, rng: random.Random) -> None:
    width, height = area
    for _ in range(max(24, width * height // 9000)):
        x, y = rng.randrange(width), int(height * rng.random() ** 1.4)
        glow = rng.randrange(130, 256)
        if rng.random() < 0.12 and min(area) > 200:
            draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(glow, glow, 255))
        else:
            draw.point((x, y), fill=(glow, glow, 255))


def _light(image: Image.Image, draw: ImageDraw.ImageDraw, mood: _Mood, centre: tuple[int, int]) -> None:
    """Sun or moon with a soft halo; the halo is blurred small and enlarged."""
    x, y = centre
    radius = max(2, min(image.size) // 14)
    reach = radius * 5
    small = Image.new("L", (64, 64))
    ImageDraw.Draw(small).ellipse((22, 22, 42, 42), fill=120)
    halo = small.filter(ImageFilter.GaussianBlur(9)).resize((reach * 2, reach * 2))
    image.paste(mood.light, (x - reach, y - reach), halo)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=mood.light)


def _ridge(draw: ImageDraw.ImageDraw, size: Size, base: float, swing: float, color: Color, rng: random.Random) -> None:
    """One mountain line: a few sines of random phase, finer ones weaker."""
    width, height = size
    waves = [(rng.uniform(0.6, 1.6) * 2**octave, rng.uniform(0, math.tau), 0.5**octave) for octave in range(5)]
    step = max(1, width // 256)
    line = [
        (
            x,
            round(base - swing * sum(a * math.sin(f * math.tau * x / width + p) for f, p, a in waves)),
        )
        for x in range(0, width + step, step)
    ]
    draw.polygon([(0, height), *line, (width, height)], fill=color)


def _water(image: Image.Image, mood: _Mood, top: int) -> None:
    """The lower part mirrors what stands above it, darker and bluish."""
    width, height = image.size
    depth = height - top
    if depth < 4:
        return
    mirror = ImageOps.flip(image.crop((0, max(0, top - depth * 2), width, top))).resize((width, depth)).convert("RGB")
    tint = Image.new("RGB", mirror.size, _mix(mood.zenith, mood.near, 0.35))
    image.paste(Image.blend(mirror, tint, 0.45), (0, top))


def _retouch(brief: Brief, mood: _Mood) -> Image.Image:
    """The first source, cropped to the asked shape, in the light of the prompt; further sources as small prints."""
    first, *others = (_open(source) for source in brief.sources[:16])
    width, height = brief.size
    image = ImageOps.fit(first, brief.size, Image.Resampling.BILINEAR)
    light = _gradient(brief.size, mood.zenith, mood.horizon)
    image = Image.blend(image, ImageChops.soft_light(image, light), 0.8)
    image = Image.blend(image, light, 0.18)
    if mood.dark:
        fade = Image.linear_gradient("L").resize((width, max(1, height * 2 // 3)))
        sky = Image.new("RGB", fade.size, mood.zenith)
        image.paste(sky, (0, 0), ImageOps.invert(fade).point(lambda value: value * 3 // 4))
        _stars(ImageDraw.Draw(image), (width, max(1, height // 2)), mood.random)
    side = max(8, min(brief.size) // 6)
    for place, other in enumerate(others):
        print_ = ImageOps.expand(ImageOps.fit(other, (side, side)), max(1, side // 20), (250, 248, 240))
        image.paste(print_, (side // 4 + place * side * 5 // 4, height - side * 5 // 4))
    return image


def _open(source: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(source)) as image:
            image.draft("RGB", (2048, 2048))  # a huge JPEG is decoded small
            return image.convert("RGB")
    except _UNREADABLE as problem:
        raise ValueError("unreadable picture") from problem


def _write(image: Image.Image, words: str, mood: _Mood) -> None:
    """The quoted words on a card in the middle, as large as the width allows."""
    width, height = image.size
    if min(width, height) < 128:
        return
    font = ImageFont.load_default(max(10, min(height // 8, int(width * 1.2) // max(4, len(words)))))
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((width // 2, height // 2), words, font=font, anchor="mm")
    pad = (bottom - top) // 2 + 8
    draw.rounded_rectangle((left - pad, top - pad, right + pad, bottom + pad), pad // 2, fill=(248, 242, 228))
    draw.text((width // 2, height // 2), words, font=font, anchor="mm", fill=mood.near)


def _unfinished(image: Image.Image, detail: float) -> Image.Image:
    """What a partial picture shows: the scene in coarse blocks, finer as ``detail`` approaches 1."""
    small = (max(2, round(image.width * detail / 8)), max(2, round(image.height * detail / 8)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)
