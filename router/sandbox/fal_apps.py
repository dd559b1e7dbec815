"""What fal's apps take, make and cost, and how they say that an input is wrong (fal schemas and pages, 2026-11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from starlette.responses import JSONResponse, Response

from router.sandbox.emulator import Problem, whole
from router.sandbox.pictures import Size
from router.sandbox.sizes import megapixels
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


@dataclass(frozen=True, slots=True)
class App:
    """One endpoint id. A unit is a megapixel (2^20 px, rounded up for each picture) or, ``per_image``, a picture.

    The first unit of a run costs ``first`` dollars, every further one, inputs included, ``further``.
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
    latency: Latency = field(default=Latency(3.232, 8.957))

    def units(self, outputs: Sequence[Size], inputs: Sequence[Size]) -> tuple[int, int]:
        """Billed units of the pictures made and of the pictures sent in."""
        if self.per_image:
            return len(outputs), 0
        made = sum(megapixels(size) for size in outputs)
        return made, sum(megapixels(size, LARGEST_INPUT) for size in inputs) if self.bills_inputs else 0

    def amount(self, units: int) -> Decimal:
        return self.first + self.further * (units - 1) if units else Decimal(0)


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
    return table | {
        "fal-ai/flux/schnell": app("0.003", latency=Latency(1.1, 2.6), **old),
        "fal-ai/flux/dev": app("0.025", latency=Latency(4.2, 9.0), **old),
        "fal-ai/bytedance/seedream/v4/text-to-image": app("0.03", latency=Latency(9.0, 18.0), **large),
        "fal-ai/bytedance/seedream/v4/edit": app(
            "0.03", edit=True, default_size="auto", latency=Latency(9.0, 18.0), **large
        ),
    }


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
    urls = body.get("image_urls") if app.edit else []
    if urls is None or not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        wrong.append(fault("missing", ["body", "image_urls"], "A list of URLs is required", urls))
        urls = []
    elif app.edit and not urls:
        wrong.append(fault("sequence_too_short", ["body", "image_urls"], "At least one URL is required", urls))
    size = _size(app, body.get("image_size"), wrong)
    if wrong:
        raise Problem(JSONResponse({"detail": wrong}, 422, headers={"X-Fal-Retryable": "false"}))
    sync = body.get("sync_mode") is True
    return Order(str(prompt), size, n, seed, str(format), sync, tuple(urls[:4]))  # further inputs are ignored


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
        sides = [
            _integer(asked, side, 512, app.min_side, app.max_side, wrong, "image_size") for side in ("width", "height")
        ]
        return sides[0], sides[1]
    if asked in PRESETS:
        return PRESETS[asked]
    wrong.append(fault("one_of", ["body", "image_size"], f"Input should be an object or one of {list(PRESETS)}", asked))
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
