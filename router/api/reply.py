"""Completed and RequestError -> bytes in OpenAI's shape.

A picture's base64 is by far the largest thing in a reply. It is never put through a JSON encoder: the reply is a list
of byte strings, with the provider's own text spliced in between.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson
import pybase64

from pricing import money_text
from router.blob import Blob
from router.errors import RequestError
from router.types import AttemptSummary, Completed, GeneratedImage, ImageRequest

OFF_LOOP = 256 * 1024
"""Bytes from which decoding and encoding leave the event loop (about 30 us of work)."""

_QUALITIES = ("low", "medium", "high", "xhigh", "max")
_COUNTS = ("input_tokens", "output_tokens", "total_tokens")
_DETAILS = ("text_tokens", "image_tokens")
_UNSAFE = re.compile(rb"[^A-Za-z0-9+/=]")


def dump(value: Any) -> bytes:
    """JSON of what other parts of the program say: enumerations as keys, amounts and dates as values included."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)


NO_USAGE: Mapping[str, Any] = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}


async def encode_completed(completed: Completed, request: ImageRequest, *, base_url: str) -> list[bytes]:
    """The body of a 200, in pieces to be sent one after the other."""
    texts = await base64_of(completed) if completed.response_format != "url" else []
    pieces = [b'{"created":%d,"data":[' % completed.created]
    for number, image in enumerate(completed.images):
        item: dict[str, Any] = {}
        if completed.response_format != "b64_json" and image.url is not None:
            item["url"] = absolute(image.url, base_url)
        if image.revised_prompt:
            item["revised_prompt"] = image.revised_prompt
        rest = orjson.dumps(item)
        comma = b"," if number else b""
        if texts:
            pieces.append(comma + b'{"b64_json":"')
            pieces += texts[number]
            pieces.append(b'"}' if rest == b"{}" else b'",' + rest[1:])
        else:
            pieces.append(comma + rest)
    around = _around(completed, request)
    plain = completed.routing is None  # the decision record is the router's own and may hold what JSON does not
    pieces.append(b"]," + (orjson.dumps(around, default=str) if plain else dump(around))[1:])
    return pieces


def _around(completed: Completed, request: ImageRequest) -> dict[str, Any]:
    """Everything but created and data. Absent values are left out, never null."""
    body: dict[str, Any] = {"id": completed.request_id}
    if completed.background in ("transparent", "opaque"):
        body["background"] = completed.background
    if completed.output_format:
        body["output_format"] = completed.output_format
    if (quality := echoed_quality(completed, request)) is not None:
        body["quality"] = quality
    if completed.size is not None:
        body["size"] = str(completed.size)
    if (usage := complete_usage(completed.usage)) is not None:
        body["usage"] = usage
    body["metadata"] = metadata_of(completed, request)
    return body


def metadata_of(completed: Completed, request: ImageRequest) -> dict[str, Any]:
    """What OpenAI's body has no place for: who made it, what it cost and why, and what was not done as asked."""
    metadata: dict[str, Any] = {
        "model": completed.model,
        "executed_model": completed.executed_model,
        "provider": completed.provider,
        "provider_name": completed.provider_name,
        "cost": money_text(completed.cost_nanos),
        "cost_currency": completed.currency,
        "basis": completed.basis,
        "line_items": completed.items,
        "attempts": [_attempt(attempt) for attempt in completed.attempts],
        "warnings": [warning.as_dict() for warning in dict.fromkeys((*request.warnings, *completed.warnings))],
        "reason": completed.reason,
    }
    if completed.basis == "unpriced":
        del metadata["cost"]  # what is unknown is not zero
    if completed.seed is not None:
        metadata["seed"] = completed.seed
    if completed.routing is not None:
        metadata["routing"] = completed.routing
    return metadata


def _attempt(attempt: AttemptSummary) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "provider": attempt.provider,
        "target": attempt.target,
        "role": attempt.role,
        "outcome": attempt.outcome,
        "latency_ms": attempt.latency_ms,
        "cost": money_text(attempt.cost_nanos),
        "billed": attempt.billed,
        "reason": attempt.reason,
    }
    if attempt.error is not None:
        summary["error"] = attempt.error
    return summary


def echoed_quality(completed: Completed, request: ImageRequest) -> str | None:
    """The quality as clients can read it: the newest two words only for clients that used them."""
    quality = completed.quality
    if quality not in _QUALITIES or (quality in ("xhigh", "max") and request.quality != quality):
        return None
    return quality


def complete_usage(usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """OpenAI's usage object if it is complete, else None: strict clients refuse a partial one."""
    if usage is None:
        return None
    found: dict[str, Any] = {name: usage.get(name) for name in _COUNTS}
    for name in ("input_tokens_details", "output_tokens_details"):
        details = usage.get(name)
        if isinstance(details, Mapping):
            found[name] = {key: details.get(key) for key in _DETAILS}
    inputs = found.get("input_tokens_details")
    if inputs is None or not _integers(found, _COUNTS) or not _integers(inputs, _DETAILS):
        return None
    if not _integers(found.get("output_tokens_details", dict.fromkeys(_DETAILS, 0)), _DETAILS):
        del found["output_tokens_details"]
    return found


def _integers(values: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return all(isinstance(values[name], int) for name in names)


# --- pictures ---------------------------------------------------------------------------------------------------


async def base64_of(completed: Completed) -> list[Blob]:
    """Every picture as standard base64, encoded off the event loop when it is large."""
    return [await base64_text(image) for image in completed.images]


async def base64_text(image: GeneratedImage) -> Blob:
    """Standard base64 without line breaks. Provider's text is passed on as it came when it is clean."""
    if image.b64 is not None:
        if image.plain or not (len(image.b64) % 4 or _dirty(bytes(image.b64))):
            return image.b64
        return Blob(await _off_loop(_cleaned, bytes(image.b64)))
    if image.data is None:
        raise ValueError("a picture without its bytes was to be sent as base64")
    return Blob(await _off_loop(pybase64.b64encode, image.data))


async def raw_bytes(image: GeneratedImage) -> bytes:
    """A picture's bytes, decoded off the event loop when they are many."""
    if image.data is not None:
        return image.data
    return await _off_loop(pybase64.b64decode, bytes(await base64_text(image)))


def _dirty(text: bytes) -> bool:
    """Whether there is anything that would end the JSON string or the base64 early. Six scans at memory speed."""
    return b'"' in text or b"\\" in text or b"\n" in text or b"\r" in text or b"-" in text or b"_" in text


def _cleaned(text: bytes) -> bytes:
    text = _UNSAFE.sub(b"", text.replace(b"-", b"+").replace(b"_", b"/")).rstrip(b"=")
    return text + b"=" * (-len(text) % 4)


async def _off_loop(work: Any, data: bytes) -> bytes:
    result: bytes = await asyncio.to_thread(work, data) if len(data) > OFF_LOOP else work(data)
    return result


def absolute(url: str, base_url: str) -> str:
    """Links to our own media store come as paths; clients need them whole."""
    return base_url + url if url.startswith("/") else url


# --- headers and errors -----------------------------------------------------------------------------------------

RawHeaders = list[tuple[bytes, bytes]]


def completed_headers(completed: Completed, overhead_s: float) -> RawHeaders:
    """What happened, for clients and proxies that never look into the body."""
    headers = [
        (b"x-pixelroute-provider", _printable(completed.provider)),
        (b"x-pixelroute-model", _printable(completed.executed_model)),
        (b"x-pixelroute-request-id", completed.request_id.encode()),
        (b"x-pixelroute-attempts", b"%d" % len(completed.attempts)),
        (b"x-pixelroute-overhead-ms", b"%.2f" % (max(0.0, overhead_s) * 1000)),
    ]
    if completed.basis != "unpriced":
        headers.append((b"x-pixelroute-cost", money_text(completed.cost_nanos).encode()))
    if completed.reason and len(completed.reason) <= 200:
        headers.append((b"x-pixelroute-reason", _printable(completed.reason)))
    return headers


@lru_cache(4096)
def _printable(text: str) -> bytes:
    if text.isascii() and text.isprintable():
        return text.encode("ascii")
    return "".join(c if " " <= c <= "~" else "?" for c in text).encode("ascii")


def encode_error(error: RequestError) -> tuple[bytes, RawHeaders]:
    """The error object, and the headers that tell clients whether and when sending it again can help.

    Where it helps after a known time, that time is told and no ``x-should-retry``: clients try such statuses again by
    themselves, and one that would have to wait for too long may decide not to.
    """
    body = dump(error.body())
    headers: RawHeaders = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % max(1, math.ceil(error.retry_after_s * 1000))))
    if not error.retry:
        headers.append((b"x-should-retry", b"false"))
    elif error.retry_after_s is None:
        headers.append((b"x-should-retry", b"true"))
    headers += [(name.lower().encode("latin-1"), _printable(value)) for name, value in error.headers.items()]
    return body, headers
