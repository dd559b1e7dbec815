"""What fal's apps take, make and cost, and how they say that an input is wrong (fal schemas and pages, 2026-11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from starlette.responses import JSONResponse, Response

from router.sandbox import google, openai
from router.sandbox.emulator import Problem, whole
from router.sandbox.pictures import Size
from router.sandbox.sizes import MEGAPIXEL, from_ratio, megapixels
from router.sandbox.world import Latency

PRESETS: Mapping[str, Size] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
LARGEST_INPUT = 4  # megapixels an input counts at most: anything larger is scaled down first


Words = Mapping[str, str]
Tariff = Callable[[Words, Size], Decimal]


@dataclass(frozen=True, slots=True)
class App:
    """One endpoint id. A unit is a megapixel (2^20 px, rounded up for each picture) or, ``per_image``, a picture.

    The first unit of a run costs ``first`` dollars, every further one, inputs included, ``further``. Where a picture's
    price depends on words of the request or its size, ``tariff`` gives it; what the header of billed units counts
    there is not documented, so none is sent.
    """

    first: Decimal
    further: Decimal
    edit: bool = False
    per_image: bool = False
    bills_inputs: bool = True
    max_images: int = 4  # 1: the app has no num_images
    min_side: int = 512
    max_side: int = 2048
    default_size: str = "landscape_4_3"  # auto: the first input's
    formats: tuple[str, ...] = ("png", "jpeg", "webp")  # the first is the default
    flags: bool = True  # has_nsfw_concepts, timings and prompt in the reply
    max_inputs: int = 4  # further ones are ignored
    input_field: str = "image_urls"
    ratios: bool = False  # takes aspect_ratio, not image_size
    multiple_of: int = 1
    max_ratio: float = float("inf")
    min_pixels: int = 1
    max_pixels: int = 1 << 31
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # parameter -> its values, the default first
    tariff: Tariff | None = None
    refusal: str = "content_policy_violation"
    describes: bool = False  # the reply has a description, and no sizes and no seed
    latency: Latency = field(default=Latency(3.232, 8.957))

    def units(self, outputs: Sequence[Size], inputs: Sequence[Size]) -> tuple[int, int]:
        """Billed units of the pictures made and of the pictures sent in."""
        if self.per_image:
            return len(outputs), 0
        made = sum(megapixels(size) for size in outputs)
        return made, sum(megapixels(size, LARGEST_INPUT) for size in inputs) if self.bills_inputs else 0

    def amount(self, units: int) -> Decimal:
        return self.first + self.further * (units - 1) if units else Decimal(0)

    def dollars(self, order: Order, size: Size, made: int, units: int) -> Decimal:
        """What a run costs that made so many pictures of this size, billed as so many units."""
        return self.amount(units) if self.tariff is None else made * self.tariff(order.words, size)


@dataclass(frozen=True, slots=True)
class Order:
    """A validated model input; ``urls`` are still to be loaded, ``size`` None is the first input's."""

    prompt: str
    size: Size | None
    n: int
    seed: int | None
    format: str
    sync_mode: bool
    urls: tuple[str, ...]
    words: Words = field(default_factory=dict)


# Prices of pictures by words and sizes

_GPT_IMAGE_2 = {  # cents for low, medium, high: generated; edited
    (1024, 768): ("0.5 3.7 14.5", "1.1 4.3 15.1"),
    (1024, 1024): ("0.6 5.3 21.1", "1.5 6.1 21.9"),
    (1024, 1536): ("0.5 4.2 16.5", "1.8 5.4 16.5"),
    (1920, 1080): ("0.5 4.0 15.8", "1.7 5.3 15.8"),
    (2560, 1440): ("0.7 5.6 22.2", "1.9 6.8 23.4"),
    (3840, 2160): ("1.2 10.1 40.1", "2.4 11.3 41.3"),
}
_EDIT_SURCHARGE = Decimal("0.013")  # of sizes without a published price: the greatest published one


def _by_word(name: str, **prices: str) -> Tariff:
    """A price by the value of one word; ``_`` before values that begin with a digit."""
    table = {value.removeprefix("_").replace("_", "."): Decimal(price) for value, price in prices.items()}
    return lambda words, size: table[words[name]]


def _gpt_image_2(edit: bool) -> Tariff:
    """Six sizes are published; others follow OpenAI's tokens at 30 dollars a million, rounded up to 0.1 cent."""

    def tariff(words: Words, size: Size) -> Decimal:
        quality = "medium" if words["quality"] == "auto" else words["quality"]
        if size in _GPT_IMAGE_2:
            cents = _GPT_IMAGE_2[size][edit].split()[("low", "medium", "high").index(quality)]
            return Decimal(cents) / 100
        tokens = openai.output_tokens(openai.MODELS["gpt-image-2"], size, quality)
        return Decimal(-(-tokens * 30 // 1000)) / 1000 + (_EDIT_SURCHARGE if edit else 0)

    return tariff


def _gpt_image_25(words: Words, size: Size) -> Decimal:
    """Exactly OpenAI's tokens, for all thirty published prices; whether the inputs of an edit cost is not said."""
    quality = "medium" if words["quality"] == "auto" else words["quality"]
    return Decimal(openai.output_tokens(openai.MODELS["gpt-image-2.5-flare"], size, quality) * 30) / 1_000_000


def _apps() -> dict[str, App]:
    def app(first: str, further: str | None = None, **rest: Any) -> App:
        return App(Decimal(first), Decimal(further or first), **rest)

    single: dict[str, Any] = {"max_images": 1, "formats": ("jpeg", "png"), "flags": False}
    table = {
        "fal-ai/flux-2/turbo": app("0.008"),
        "fal-ai/flux-2/flash": app("0.005", latency=Latency(2.1, 5.5)),
        "fal-ai/flux-2": app("0.012", latency=Latency(5.5, 13.0)),
        "fal-ai/flux-2-pro": app("0.03", "0.015", latency=Latency(7.0, 15.0), **single),
        "fal-ai/flux-2-max": app("0.07", "0.03", latency=Latency(11.0, 22.0), **single),
        "fal-ai/flux-2-flex": app("0.05", latency=Latency(9.0, 19.0), **single),
    }
    for name, made in list(table.items()):
        of_input = name in ("fal-ai/flux-2", "fal-ai/flux-2-pro", "fal-ai/flux-2-max", "fal-ai/flux-2-flex")
        table[f"{name}/edit"] = replace(made, edit=True, default_size="auto" if of_input else "square_hd")
    old: dict[str, Any] = {"min_side": 64, "formats": ("jpeg", "png")}
    large: dict[str, Any] = {"per_image": True, "min_side": 960, "max_side": 4096, "flags": False}
    kontext = app(
        "0.04",
        edit=True,
        per_image=True,
        default_size="auto",
        formats=("jpeg", "png"),
        max_inputs=1,
        input_field="image_url",
        ratios=True,
        latency=Latency(6.0, 12.0),
    )
    return table | {
        "fal-ai/flux/schnell": app("0.003", latency=Latency(1.1, 2.6), **old),
        "fal-ai/flux/dev": app("0.025", latency=Latency(4.2, 9.0), **old),
        "fal-ai/bytedance/seedream/v4/text-to-image": app("0.03", latency=Latency(9.0, 18.0), **large),
        "fal-ai/bytedance/seedream/v4/edit": app(
            "0.03", edit=True, default_size="auto", max_inputs=10, latency=Latency(9.0, 18.0), **large
        ),
        "fal-ai/flux-pro/v1.1": app("0.04", min_side=256, max_side=1440, formats=("jpeg", "png")),
        "fal-ai/flux-pro/kontext": replace(kontext, first=Decimal("0.04"), further=Decimal("0.04")),
        "fal-ai/flux-pro/kontext/max": replace(kontext, first=Decimal("0.08"), further=Decimal("0.08")),
        **_partners(),
    }


def _partners() -> dict[str, App]:
    """Other companies' models, as fal offers them."""
    partner = App(Decimal(0), Decimal(0), per_image=True, flags=False, default_size="square_hd", formats=("png",))
    nano = replace(
        partner,
        max_inputs=14,
        formats=("png", "jpeg", "webp"),
        ratios=True,
        refusal="no_media_generated",
        describes=True,
        latency=Latency(9.0, 20.0),
    )
    two = {"resolution": ("1K", "0.5K", "2K", "4K")}
    pro = {"resolution": ("1K", "2K", "4K")}
    gpt = replace(
        partner,
        max_inputs=16,
        min_side=16,
        max_side=3840,
        multiple_of=16,
        max_ratio=3,
        min_pixels=655_360,
        max_pixels=8_294_400,
        formats=("png", "jpeg", "webp"),
        latency=Latency(22.0, 60.0),
    )
    gpt_2 = replace(gpt, words={"quality": ("high", "low", "medium", "auto")})
    gpt_25 = replace(gpt, words={"quality": ("high", "low", "medium", "xhigh", "max", "auto")}, tariff=_gpt_image_25)
    speeds = {"rendering_speed": ("BALANCED", "TURBO", "QUALITY")}
    table = {
        "fal-ai/nano-banana": replace(nano, first=Decimal("0.039"), further=Decimal("0.039")),
        "fal-ai/nano-banana-2": replace(
            nano, words=two, tariff=_by_word("resolution", _0_5K="0.06", _1K="0.08", _2K="0.12", _4K="0.16")
        ),
        "fal-ai/nano-banana-pro": replace(
            nano, words=pro, tariff=_by_word("resolution", _1K="0.15", _2K="0.15", _4K="0.30")
        ),
        "fal-ai/ideogram/v3": replace(
            partner, words=speeds, tariff=_by_word("rendering_speed", TURBO="0.03", BALANCED="0.06", QUALITY="0.09")
        ),
        "fal-ai/recraft/v3/text-to-image": replace(
            partner, first=Decimal("0.04"), further=Decimal("0.04"), max_images=1
        ),
        "openai/gpt-image-2": replace(gpt_2, default_size="landscape_4_3", tariff=_gpt_image_2(edit=False)),
        "openai/gpt-image-2/edit": replace(gpt_2, edit=True, default_size="auto", tariff=_gpt_image_2(edit=True)),
    }
    for name in ("fal-ai/nano-banana", "fal-ai/nano-banana-2", "fal-ai/nano-banana-pro"):
        table[f"{name}/edit"] = replace(table[name], edit=True, default_size="auto")
    for kind in ("flare", "sunburst"):
        table[f"openai/gpt-image-2.5/{kind}/text-to-image"] = replace(gpt_25, default_size="landscape_4_3")
        table[f"openai/gpt-image-2.5/{kind}/edit"] = replace(gpt_25, edit=True, default_size="auto")
    return table


APPS: Mapping[str, App] = _apps()
"""Endpoint id -> app. Prices: fal's guide of FLUX.2 turbo, fal's model pages, 2026-11."""


# Validation


def check(app: App, body: Mapping[str, Any]) -> Order:
    """The order in a model input. Raises a 422 Problem that lists everything that is wrong."""
    wrong: list[dict[str, Any]] = []
    prompt = body.get("prompt")
    if "prompt" not in body:
        wrong.append(fault("missing", ["body", "prompt"], "Field required"))
    elif not isinstance(prompt, str):
        wrong.append(fault("value_error", ["body", "prompt"], "Input should be a valid string", prompt))
    n = 1
    if app.max_images > 1:
        n = _integer(body, "num_images", 1, 1, app.max_images, wrong)
    seed = body.get("seed")
    if seed is not None and whole(seed) is None:
        wrong.append(fault("value_error", ["body", "seed"], "Input should be a valid integer", seed))
    format = body.get("output_format", app.formats[0])
    if format not in app.formats:
        wrong.append(fault("one_of", ["body", "output_format"], f"Input should be one of {app.formats}", format))
    urls = _urls(app, body, wrong)
    words = {name: str(body.get(name, values[0])) for name, values in app.words.items()}
    for name, value in words.items():
        if value not in app.words[name]:
            wrong.append(fault("one_of", ["body", name], f"Input should be one of {app.words[name]}", value))
    size = _shape(app, body, words, wrong) if app.ratios else _size(app, body.get("image_size"), wrong)
    if wrong:
        raise Problem(JSONResponse({"detail": wrong}, 422, headers={"X-Fal-Retryable": "false"}))
    sync = body.get("sync_mode") is True
    return Order(str(prompt), size, n, seed, str(format), sync, tuple(urls[: app.max_inputs]), words)


def _urls(app: App, body: Mapping[str, Any], wrong: list[dict[str, Any]]) -> list[str]:
    if not app.edit:
        return []
    urls = body.get(app.input_field)
    if app.input_field == "image_url":
        urls = None if urls is None else [urls]
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        wrong.append(fault("missing", ["body", app.input_field], "A list of URLs is required", urls))
        return []
    if not urls:
        wrong.append(fault("sequence_too_short", ["body", app.input_field], "At least one URL is required", urls))
    return urls


def _integer(
    body: Mapping[str, Any], name: str, default: int, low: int, high: int, wrong: list[dict[str, Any]], *within: str
) -> int:
    value = body.get(name, default)
    where = ["body", *within, name]
    if whole(value) is None:
        wrong.append(fault("value_error", where, "Input should be a valid integer", value))
    elif not low <= value <= high:
        word, bound = ("greater_than_equal", low) if value < low else ("less_than_equal", high)
        wrong.append(fault(word, where, f"Input should be {word.replace('_', ' ')} {bound}", value))
    else:
        return int(value)
    return default


def _size(app: App, asked: Any, wrong: list[dict[str, Any]]) -> Size | None:
    if asked is None:
        asked = app.default_size
    if asked == "auto" and app.default_size == "auto":
        return None
    if isinstance(asked, dict):
        width, height = (
            _integer(asked, side, 512, app.min_side, app.max_side, wrong, "image_size") for side in ("width", "height")
        )
    elif isinstance(asked, str) and asked in PRESETS:
        width, height = PRESETS[asked]
    else:
        text = f"Input should be an object or one of {list(PRESETS)}"
        wrong.append(fault("one_of", ["body", "image_size"], text, asked))
        return None
    if width % app.multiple_of or height % app.multiple_of:
        text = f"Input should be multiples of {app.multiple_of}"
        wrong.append(fault("multiple_of", ["body", "image_size"], text, asked))
    elif (
        max(width, height) > app.max_ratio * min(width, height)
        or not app.min_pixels <= width * height <= app.max_pixels
    ):
        wrong.append(fault("value_error", ["body", "image_size"], "Input has a shape or area not offered", asked))
    return width, height


def _shape(app: App, body: Mapping[str, Any], words: Words, wrong: list[dict[str, Any]]) -> Size | None:
    """The size of a ratio: Google's models make their own sizes of it, Kontext a megapixel."""
    ratio = body.get("aspect_ratio") or ("auto" if app.edit else "1:1")
    if ratio == "auto":
        return None if app.edit else (1024, 1024)
    if app.describes and ratio in google.RATIOS:
        width, height = google.RATIOS[ratio]
        scale = float(words.get("resolution", "1K").removesuffix("K"))
        return int(width * scale), int(height * scale)
    try:
        return from_ratio(str(ratio), MEGAPIXEL, 16)
    except ValueError:
        wrong.append(fault("one_of", ["body", "aspect_ratio"], "Input should be an aspect ratio", ratio))
        return None


# fal's shapes


def plain(status: int, text: str) -> Response:
    return JSONResponse({"detail": text}, status)


def fault(word: str, where: Sequence[Any], text: str, value: Any = None) -> dict[str, Any]:
    """One entry of a model error's ``detail``."""
    url = f"https://docs.fal.ai/errors/#{word}"
    return {"loc": list(where), "msg": text, "type": word, "url": url, "ctx": {}, "input": value}


def model_error(word: str, where: Sequence[Any], text: str) -> Response:
    return JSONResponse({"detail": [fault(word, where, text)]}, 422, headers={"X-Fal-Retryable": "false"})


def infrastructure_error(status: int, word: str, text: str = "") -> Response:
    body = {"detail": text or word.replace("_", " ").capitalize(), "error_type": word}
    return JSONResponse(body, status, headers={"X-Fal-Error-Type": word})
