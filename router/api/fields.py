"""Reading request fields strictly: one type per field, one error per mistake, in OpenAI's words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from pricing import ImageSize
from router.errors import RequestError
from router.types import MAX_PROMPT, NO_PREFERENCES, ON_DISCONNECT, SIZE_POLICIES, Preferences, Warn

_MAX_NAME = 256
_MAX_USER = 512
_MAX_DEPTH = 64
_LENGTHS = (("prompt", MAX_PROMPT), ("user", _MAX_USER), ("safety_identifier", _MAX_USER))
_INTEGER = re.compile(r"-?[0-9]{1,20}")

TEXT, INTEGER, BOOLEAN, OBJECT, SIZE = "a string", "an integer", "a boolean", "an object", "a string or an object"
NAMES = "an array of strings"

KINDS: Mapping[str, str] = {
    "prompt": TEXT,
    "model": TEXT,
    "models": NAMES,
    "n": INTEGER,
    "size": TEXT,
    "size_policy": TEXT,
    "quality": TEXT,
    "response_format": TEXT,
    "output_format": TEXT,
    "output_compression": INTEGER,
    "background": TEXT,
    "moderation": TEXT,
    "style": TEXT,
    "stream": BOOLEAN,
    "partial_images": INTEGER,
    "user": TEXT,
    "safety_identifier": TEXT,
    "input_fidelity": TEXT,
    "seed": INTEGER,
    # the newest fields of OpenAI's API: checked here, offered to the adapter as they came
    "complexity": TEXT,
    "frame_count": INTEGER,
    "frame_duration_ms": INTEGER,
    "svg": OBJECT,
    # other systems' names for the same things
    "image_size": SIZE,
    "num_images": INTEGER,
    "aspect_ratio": TEXT,
    "resolution": TEXT,
    "provider": OBJECT,
    "webhook_url": TEXT,
}
"""Every field with a meaning here, and what it must be. All others are the provider's."""

_AS_THEY_ARE = {TEXT: str, INTEGER: int, BOOLEAN: bool}
_PLAIN = {name: _AS_THEY_ARE.get(kind) for name, kind in KINDS.items()}  # the JSON type that needs no second look

PASSED_ON = ("complexity", "frame_count", "frame_duration_ms", "svg")

WORDS: Mapping[str, tuple[str, ...]] = {
    "size_policy": SIZE_POLICIES,
    "quality": ("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"),
    "response_format": ("url", "b64_json"),
    "output_format": (
        "png",
        "jpeg",
        "webp",
        "gif",
        "avif",
    ),  # svg: no adapter makes vectors, and nothing converts to it
    "background": ("auto", "transparent", "opaque"),
    "moderation": ("auto", "low"),
    "style": ("vivid", "natural"),
    "input_fidelity": ("high", "low"),
}

RANGES: Mapping[str, tuple[int, int]] = {
    "n": (1, 10),
    "num_images": (1, 10),
    "output_compression": (0, 100),
    "partial_images": (0, 3),
    "seed": (-1, 2**63 - 1),
    "frame_count": (2, 64),
    "frame_duration_ms": (1, 60_000),
}

# fal queue docs, 2026-11-20
PRESETS: Mapping[str, ImageSize] = {
    "square_hd": ImageSize(1024, 1024),
    "square": ImageSize(512, 512),
    "portrait_4_3": ImageSize(768, 1024),
    "portrait_16_9": ImageSize(576, 1024),
    "landscape_4_3": ImageSize(1024, 768),
    "landscape_16_9": ImageSize(1024, 576),
}

RESOLUTIONS: Mapping[str, int] = {  # pixels of each tier
    "512": 512**2,
    "0.5k": 512**2,
    "1k": 1024**2,
    "2k": 2048**2,
    "4k": 4096**2,
    "0.5 mp": 2**19,
    "1 mp": 2**20,
    "2 mp": 2**21,
    "4 mp": 2**22,
}

SORTS = ("balanced", "fastest", "cheapest", "reliable", "weighted", "priority")


# --- errors -----------------------------------------------------------------------------------------------------


def wrong_type(name: str, expected: str, value: Any) -> RequestError:
    return RequestError(
        400, f"Invalid type for '{name}': expected {expected}, but got {_kind(value)}.", code="invalid_type", param=name
    )


def wrong_value(name: str, message: str) -> RequestError:
    return RequestError(400, message, code="invalid_value", param=name)


def missing(name: str) -> RequestError:
    return RequestError(400, f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        return "a string"
    return "an integer" if isinstance(value, int) else "a number"


# --- types ------------------------------------------------------------------------------------------------------


def typed(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """JSON values as (known fields, the provider's fields). null is absent; a wrong type is a RequestError."""
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in values.items():
        kind = KINDS.get(name)
        if type(value) is _PLAIN.get(name):
            known[name] = value
        elif value is None:
            continue
        elif kind is None:
            if isinstance(value, (dict, list)):
                _bounded(value, name)
            extra[name] = value
        elif kind is INTEGER:
            known[name] = _integer(name, value)
        elif kind is NAMES:
            known[name] = _names(name, value)
        elif name == "background" and isinstance(value, bool):
            known["later"] = value  # the word of OpenAI's Responses API for work that nobody waits for
        else:
            if not (kind is OBJECT and isinstance(value, dict)) and not (
                kind is SIZE and isinstance(value, (dict, str))
            ):
                raise wrong_type(name, kind, value)
            _bounded(value, name)
            known[name] = value
    return known, extra


def typed_text(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Form values, where all scalars are text and an empty one is absent, as (known fields, the provider's fields)."""
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in values.items():
        if value == "":
            continue
        kind = KINDS.get(name)
        if kind is None:
            extra[name] = value
        elif kind in (OBJECT, SIZE) and isinstance(value, dict):
            known[name] = value
        elif kind is NAMES:
            known[name] = _names(name, value)
        elif kind is OBJECT or not isinstance(value, str):
            raise wrong_type(name, kind, value)
        elif kind is INTEGER:
            if not _INTEGER.fullmatch(value):
                raise wrong_type(name, kind, value)
            known[name] = int(value)
        elif kind is BOOLEAN:
            if value.lower() not in ("true", "false"):
                raise wrong_type(name, kind, value)
            known[name] = value.lower() == "true"
        else:
            known[name] = value
    return known, extra


def _integer(name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():  # 2.0, and integers too long for 64 bits
        return int(value)
    raise wrong_type(name, INTEGER, value)


def _bounded(value: Any, name: str, depth: int = 1) -> None:
    """Refuse nesting that a provider's or our own JSON encoder would choke on."""
    if depth > _MAX_DEPTH:
        raise RequestError(400, f"'{name}' is nested too deeply.", param=name)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(item, (dict, list)):
            _bounded(item, name, depth + 1)


# --- values -----------------------------------------------------------------------------------------------------


def check_values(known: Mapping[str, Any]) -> None:
    """Words and ranges that hold for every model."""
    for name, value in known.items():
        if (words := WORDS.get(name)) is not None:
            if value not in words:
                raise wrong_value(
                    name, f"Invalid value: '{value[:64]}'. Supported values are: {', '.join(map(repr, words))}."
                )
        elif (bounds := RANGES.get(name)) is not None:
            least, most = bounds
            if value < least:
                raise RequestError(
                    400, f"'{name}' must be at least {least}.", code="integer_below_min_value", param=name
                )
            if value > most:
                raise RequestError(400, f"'{name}' must be at most {most}.", code="integer_above_max_value", param=name)
    if known.get("background") == "transparent" and known.get("output_format") == "jpeg":
        raise wrong_value("background", "Transparent background is not supported with output_format 'jpeg'.")
    for name, most in _LENGTHS:
        if (text := known.get(name)) is not None and len(text) > most:
            raise RequestError(
                400, f"'{name}' is longer than {most} characters.", code="string_above_max_length", param=name
            )
    url = known.get("webhook_url")
    if url is not None and (len(url) > 2048 or not url.lower().startswith(("http://", "https://"))):
        raise wrong_value("webhook_url", "'webhook_url' must be a URL of at most 2048 characters.")
    if len(known.get("model", "")) > _MAX_NAME:
        raise RequestError(404, "The model does not exist.", code="model_not_found", param="model")


def read_n(known: Mapping[str, Any]) -> int:
    """``n``, or fal's name for it."""
    n: int = known.get("n") or known.get("num_images") or 1  # neither can be 0
    if known.get("num_images", n) != n:
        raise wrong_value("num_images", "'n' and 'num_images' mean the same and differ; send one of them.")
    return n


def read_size(known: Mapping[str, Any], warnings: list[Warn]) -> ImageSize | None:
    """The size asked for under any of its names; None means auto. Ratio and resolution give way to a size."""
    size = _size("size", known["size"]) if "size" in known else None
    other = _image_size(known["image_size"]) if "image_size" in known else None
    if size is not None and other is not None and size != other:
        raise wrong_value("image_size", "'size' and 'image_size' mean the same and differ; send one of them.")
    size = size or other
    ratio = _ratio(known["aspect_ratio"]) if "aspect_ratio" in known else None
    pixels = _resolution(known["resolution"]) if "resolution" in known else None
    if ratio is None and pixels is None:
        return size
    if size is not None:
        for name in ("aspect_ratio", "resolution"):
            if name in known:
                warnings.append(Warn("parameter_ignored", f"'{name}' was ignored because a size is given.", name))
        return size
    size = shaped(ratio or 1.0, pixels or RESOLUTIONS["1k"])
    name = "aspect_ratio" if ratio is not None else "resolution"
    warnings.append(Warn("size_derived", f"The size {size} was derived from aspect_ratio and resolution.", name))
    return size


def read_size_policy(known: Mapping[str, Any], headers: Mapping[bytes, bytes], warned: Sequence[Warn]) -> str | None:
    """``size_policy`` of the body, else of the header; one derived from a shape asks for no exact pixels."""
    policy = known.get("size_policy")
    if policy is None and (raw := headers.get(b"x-pixelroute-size-policy")) is not None:
        policy = raw.decode("latin-1").strip().lower()
        check_values({"size_policy": policy})
    if policy is None and warned and any(warning.code == "size_derived" for warning in warned):
        return "nearest"
    return policy


def _size(name: str, text: str) -> ImageSize | None:
    if text == "auto":
        return None
    try:
        return _parsed(text)
    except ValueError:
        raise wrong_value(
            name, f"Invalid size '{text[:40]}'. Use 'auto' or WIDTHxHEIGHT in pixels, such as '1024x1024'."
        ) from None


_parsed = lru_cache(1024)(ImageSize.parse)


def _image_size(value: str | dict[str, Any]) -> ImageSize | None:
    if isinstance(value, str):
        preset = PRESETS.get(value)
        return preset if preset is not None else _size("image_size", value)
    sides = []
    for side in ("width", "height"):
        length = value.get(side)
        if isinstance(length, str) and _INTEGER.fullmatch(length):  # from a form
            length = int(length)
        if length is None:
            raise missing(f"image_size.{side}")
        number = _integer(f"image_size.{side}", length)
        if not 1 <= number <= 99_999:
            raise wrong_value("image_size", f"'image_size.{side}' must be a number of pixels.")
        sides.append(number)
    return ImageSize(*sides)


def _ratio(text: str) -> float | None:
    if text == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,2})?):([0-9]{1,3}(?:\.[0-9]{1,2})?)", text)
    width, height = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not width or not height or not 1 / 16 <= width / height <= 16:
        raise wrong_value("aspect_ratio", "'aspect_ratio' must be 'auto' or WIDTH:HEIGHT, such as '16:9'.")
    return width / height


def _resolution(text: str) -> int:
    pixels = RESOLUTIONS.get(text.lower())
    if pixels is None:
        raise wrong_value(
            "resolution", f"Invalid resolution '{text[:40]}'. Supported values are: 0.5K, 1K, 2K, 4K, 1 MP, 2 MP, 4 MP."
        )
    return pixels


def shaped(ratio: float, pixels: int) -> ImageSize:
    """The size in multiples of 16 nearest to ``ratio`` that stays within ``pixels``: one more can cost a megapixel."""
    width, height = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
    best = ImageSize(max(16, int(width) // 16 * 16), max(16, int(height) // 16 * 16))
    for wide in (0, 16):
        for high in (0, 16):
            size = ImageSize(max(16, int(width) // 16 * 16 + wide), max(16, int(height) // 16 * 16 + high))
            if size.pixels <= pixels and _off(size, ratio) < _off(best, ratio):
                best = size
    return best


def _off(size: ImageSize, ratio: float) -> float:
    return abs(math.log(size.width / size.height / ratio))


# --- routing preferences ----------------------------------------------------------------------------------------

MAX_MODELS = 8
_LISTS = ("order", "only", "ignore", "require_tags", "exclude_tags")


def read_models(known: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> tuple[str, ...] | None:
    """The models to ask in turn, from the body or ``X-Pixelroute-Models``; None where neither names any."""
    models: tuple[str, ...] | None = known.get("models")
    if models is None:
        raw = headers.get(b"x-pixelroute-models")
        if raw is None:
            return None
        models = tuple(_listed(raw.decode("latin-1")))
    if len(models) > MAX_MODELS:
        raise RequestError(
            400, f"'models' has more than {MAX_MODELS} items.", code="array_above_max_length", param="models"
        )
    if any(not name or len(name) > _MAX_NAME for name in models):
        raise wrong_value("models", "'models' must hold names of models.")
    return models


def read_deadline(headers: Mapping[bytes, bytes], *, waits: bool) -> float | None:
    """Seconds that the client is going to wait: ``X-Pixelroute-Deadline-S``, else what its SDK says it waits.

    ``waits``: the whole answer comes at once, so the SDK's time to wait for the next bytes is that for the answer; it
    ends a little earlier here, so that the answer is there before the client gives up and sends the request again.
    """
    raw = headers.get(b"x-pixelroute-deadline-s")
    if raw is not None:
        seconds = _number("X-Pixelroute-Deadline-S", raw.decode("latin-1").strip())
        if seconds < 0.1:
            raise wrong_value("X-Pixelroute-Deadline-S", "'X-Pixelroute-Deadline-S' must be at least 0.1.")
        return seconds
    if waits:  # the Python client's word, and the JavaScript client's
        raw = headers.get(b"x-stainless-read-timeout") or headers.get(b"x-stainless-timeout")
    if raw is None:
        return None
    try:
        seconds = float(raw)
    except ValueError:
        return None  # the SDK's word for no limit, or no number: none of the client's making
    return max(0.95 * seconds, 0.1) if 0 < seconds <= 1_000_000 else None


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def read_preferences(body: Mapping[str, Any] | None, headers: Mapping[bytes, bytes]) -> Preferences:
    """The body's ``provider`` object over the ``X-Pixelroute-*`` headers. An unknown key is refused: it was meant to
    rule something out, and would not."""
    if not body and headers.keys().isdisjoint(_ASKING):
        return NO_PREFERENCES
    asked: dict[str, Any] = {}
    for name, header in HEADERS.items():
        raw = headers.get(header)
        if raw is not None:
            asked[name] = _preference(name, _from_header(name, raw.decode("latin-1").strip()))
    if body:
        for name, value in body.items():
            if name not in _READERS:
                known = ", ".join(_READERS)
                raise RequestError(
                    400,
                    f"Unknown parameter: 'provider.{name[:64]}'. Supported are: {known}.",
                    code="unknown_parameter",
                    param=f"provider.{name[:64]}",
                )
            if value is not None:
                asked[name] = _preference(name, value)
    return Preferences(**asked) if asked else NO_PREFERENCES


PREFERENCES: Mapping[str, str] = {
    "sort": "What to prefer: a named weighing of money, time and failure.",
    "order": "Providers or provider/model, to be used in this order before any other.",
    "only": "No others than these providers or provider/model.",
    "ignore": "None of these providers or provider/model.",
    "max_cost": "Most that the whole request may be expected to cost.",
    "max_latency_s": "Most seconds that 95 of 100 such requests may be expected to take.",
    "min_success": "Least share of attempts that may be expected to succeed, 0 to 1.",
    "require_tags": "Only targets with all of these tags, such as region:eu.",
    "exclude_tags": "No target with any of these tags, such as non-commercial.",
    "allow_fallbacks": "Whether another target may be tried after the first (or those of order) failed.",
    "on_disconnect": "What becomes of the work when the client leaves: finish keeps the result, cancel stops it.",
}

HEADERS = {
    "sort": b"x-pixelroute-sort",
    "order": b"x-pixelroute-order",
    "only": b"x-pixelroute-only",
    "ignore": b"x-pixelroute-ignore",
    "max_cost": b"x-pixelroute-max-cost",
    "max_latency_s": b"x-pixelroute-max-latency-s",
    "min_success": b"x-pixelroute-min-success",
    "require_tags": b"x-pixelroute-require-tags",
    "exclude_tags": b"x-pixelroute-exclude-tags",
    "allow_fallbacks": b"x-pixelroute-allow-fallbacks",
    "on_disconnect": b"x-pixelroute-on-disconnect",
}
_ASKING = frozenset(HEADERS.values())


def _from_header(name: str, text: str) -> Any:
    if name in _LISTS:
        return _listed(text)
    if name == "allow_fallbacks" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return text


def _preference(name: str, value: Any) -> Any:
    return _READERS[name](f"provider.{name}", value)


def _word(words: Sequence[str]) -> Callable[[str, Any], str]:
    def read(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise wrong_type(name, TEXT, value)
        if value not in words:
            raise wrong_value(name, f"Invalid value for '{name}'. Supported values are: {', '.join(words)}.")
        return value

    return read


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise wrong_type(name, NAMES, value)
    if len(value) > 64:
        raise RequestError(400, f"'{name}' has more than 64 items.", code="array_above_max_length", param=name)
    return tuple(value)


def _amount(name: str, value: Any, words: str = "an amount of money, such as 0.05") -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong_type(name, "a number", value)
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise wrong_value(name, f"'{name}' must be {words}.") from None
    if not amount.is_finite() or not 0 <= amount <= 1_000_000:
        raise wrong_value(name, f"'{name}' must be {words}.")
    return amount


def _number(name: str, value: Any) -> float:
    return float(_amount(name, value, "a number between 0 and 1000000"))


def _share(name: str, value: Any) -> float:
    words = "a share between 0 and 1, such as 0.95"
    share = float(_amount(name, value, words))
    if share > 1:
        raise wrong_value(name, f"'{name}' must be {words}.")
    return share


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise wrong_type(name, BOOLEAN, value)
    return value


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "sort": _word(SORTS),
    "order": _names,
    "only": _names,
    "ignore": _names,
    "max_cost": _amount,
    "max_latency_s": _number,
    "min_success": _share,
    "require_tags": _names,
    "exclude_tags": _names,
    "allow_fallbacks": _flag,
    "on_disconnect": _word(ON_DISCONNECT),
}
