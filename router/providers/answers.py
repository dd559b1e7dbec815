"""Reading what a provider answered. Nothing in it is trusted: it becomes typed values, or a ProviderError.

Adapters decide by status and machine-readable codes. The provider's prose is only quoted, cleaned, for people.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx
import orjson
import pybase64

from pricing import ImageSize
from router.blob import Blob
from router.errors import Billed, ErrorKind, ProviderError
from router.types import GeneratedImage, ImageRequest, ImageResult, Warn
from router.whole import body_of, header

_DAY_S = 86_400.0
_MAX_SIDE = 65_535
_REASON_CHARACTERS = 300
_SMALL = 16 * 1024


# --- bodies -----------------------------------------------------------------------------------------------------------


def parse(response: httpx.Response) -> Any:
    """The JSON of a 2xx answer. Truncated, HTML, NaN and other junk is NO_ANSWER: we sent, and do not know."""
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        _unreadable(response)


def parse_exact(response: httpx.Response) -> Any:
    """As ``parse``, with every fractional number a Decimal: for small answers that carry money."""
    try:
        return json.loads(response.content, parse_float=Decimal, parse_constant=_refuse_constant)
    except (ValueError, RecursionError, InvalidOperation):
        _unreadable(response)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _unreadable(response: httpx.Response) -> NoReturn:
    raise ProviderError(
        ErrorKind.NO_ANSWER,
        "The provider's answer could not be read.",
        status=response.status_code,
        provider_request_id=request_id(response),
    ) from None


def error_body(response: httpx.Response) -> Any:
    """The JSON of an error answer, or None: a broken body does not hide what the status says."""
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return None


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def text(value: object) -> str | None:
    """A non-empty string that can be encoded, else None."""
    if not isinstance(value, str) or not value:
        return None
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def count(value: object) -> int:
    """A number of tokens or pictures; 0 for anything that is none."""
    number = integer(value)
    return number if number is not None and 0 <= number < 2**53 else 0


def amount(value: object) -> Decimal | None:
    """A non-negative finite number from JSON or a header, else None. A float keeps the digits it was written with."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except (InvalidOperation, ValueError):
        return None
    return number if number.is_finite() and 0 <= number < 10**12 else None


def size(width: object, height: object) -> ImageSize | None:
    if isinstance(width, int) and isinstance(height, int) and 0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE:
        return ImageSize(int(width), int(height))
    return None


def size_text(value: object) -> ImageSize | None:
    """``1024x1024``; None for ``auto`` and anything else."""
    try:
        parsed = ImageSize.parse(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return parsed and size(parsed.width, parsed.height)


def parse_lifted(
    response: httpx.Response, key: bytes, content: bytes | None = None
) -> tuple[Mapping[str, Any], list[Blob]]:
    """As ``parse``, with the long string values of ``key`` taken out beside it: neither parsed nor copied.

    In the parsed object each value is replaced by its index in the list; ``lifted`` reads it. The values are bytes as
    they came, not yet known to be anything; ``inlined`` checks them. ``content``: one event of a stream, instead of the
    answer's whole body.
    """
    body = body_of(response) if content is None else Blob(content)
    text, values = _lift(body, b'"%b"' % key) if len(body) > _LIFT_FROM else (bytes(body), list[Blob]())
    try:
        return mapping(orjson.loads(text)), values
    except orjson.JSONDecodeError:
        _unreadable(response)


_LIFT_FROM = 1024
_NEAR = 64  # bytes between a name and its value, blanks included, from which nobody looks on


def _lift(body: Blob, name: bytes) -> tuple[bytes, list[Blob]]:
    """The JSON text without the long values of ``name``, and these, in the pieces they came in."""
    kept: list[bytes] = []
    values: list[Blob] = []
    pieces = iter(body)
    text, at = next(pieces), 0  # a piece, and how far it has been dealt with
    while True:
        found = text.find(name, at)
        after = found + len(name)
        start = text.find(b'"', after) + 1 if found >= 0 else 0
        if found < 0 or (not start and len(text) - after < _NEAR):  # it may begin here, and go on in the next piece
            more = next(pieces, None)
            if more is None:
                break
            cut = found if found >= 0 else max(at, len(text) - len(name) + 1)
            kept.append(text[at:cut])
            text, at = text[cut:] + more, 0
            continue
        if not start or text[after : start - 1].strip() != b":":
            kept.append(text[at:after])
            at = after
            continue
        kept.append(text[at : start - 1])
        value: list[bytes] = []
        while (at := text.find(b'"', start)) < 0:
            value.append(text[start:])  # of a whole piece this is the piece itself
            more = next(pieces, None)
            if more is None:
                break
            text, start = more, 0
        else:
            value.append(text[start:at])
        if at < 0 or any(b"\\" in piece for piece in value):  # cut off, or escaped: for the parser
            kept += (b'"', *value)
            kept += (text[at:] if at >= 0 else b"", *pieces)
            return b"".join(kept), values
        if sum(map(len, value)) > _LIFT_FROM:
            kept.append(b"%d" % len(values))
            values.append(Blob(*value))
        else:
            kept += (b'"', *value, b'"')
        at += 1
    kept.append(text[at:])
    return b"".join(kept), values


def lifted(value: object, values: list[Blob]) -> object:
    """The value of a lifted field: itself if it was short."""
    return values[value] if isinstance(value, int) and 0 <= value < len(values) else value


def field_of(location: object, names: Mapping[str, str]) -> str | None:
    """Our name of the field that a validation error's ``["body", "image_size", "width"]`` points at."""
    for part in items(location):
        if isinstance(part, str) and part not in ("body", "input"):
            return names.get(part) or identifier(part)
    return None


# --- pictures ---------------------------------------------------------------------------------------------------------

_LINK = re.compile(r"https?://[A-Za-z0-9\[][A-Za-z0-9.:\[\]-]*(?:[/?][!-~]*)?")
_MEDIA_TYPE = re.compile(r"image/([a-z0-9.+-]{1,20})(?:;.*)?", re.DOTALL)
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_ALIASES = {"jpg": "jpeg", "svg+xml": "svg"}


def media_format(value: object) -> str | None:
    """``png`` from ``image/png``, ``png`` or ``PNG``."""
    if not isinstance(value, str):
        return None
    match = _MEDIA_TYPE.fullmatch(value.lower() if "/" in value else f"image/{value.lower()}")
    return _ALIASES.get(match[1], match[1]) if match else None


def linked(value: object, *, size: ImageSize | None = None, format: str | None = None) -> GeneratedImage | None:
    """A picture named by URL or carried in a data URI; None when it is neither. Fetching it is the transport's part."""
    if not isinstance(value, str):
        return None
    if value.startswith("data:"):
        head, _, data = value.partition(",")
        if not head.endswith(";base64"):
            return None
        return inlined(data, size=size, format=media_format(head[5:-7]) or format)
    url = address(value)
    return None if url is None else GeneratedImage(url=url, size=size, format=format)


def inlined(
    value: object, *, size: ImageSize | None = None, format: str | None = None, revised_prompt: str | None = None
) -> GeneratedImage | None:
    """A picture carried as base64, kept as text; None when it is not base64.

    Checked whole, because the text goes into the client's JSON as it is: 0.3 ms for 1.5 MB
    that no cache holds (2026-11).
    """
    if isinstance(value, str):
        value = Blob(value.encode("latin-1", "replace"))
    if not isinstance(value, Blob) or not value:
        return None
    if value.head(5) == b"data:":  # some compatible hosts put a data URI here
        head, _, text = bytes(value).decode("latin-1").partition(",")
        format = media_format(head[5:].removesuffix(";base64")) or format
        value = Blob(text.encode("latin-1"))
    if not _is_base64(value):
        return None
    return GeneratedImage(None, value, True, None, size, format, revised_prompt)


def _is_base64(text: Blob) -> bool:
    """Whether this is standard base64 of something, padded, and nothing else. What it decodes to is not kept."""
    if len(text) <= _SMALL:  # there, giving the interpreter lock away would cost more than the work
        piece = bytes(text)
        padding = piece.translate(None, _ALPHABET)
        return piece != b"" and len(piece) % 4 == 0 and padding in (b"", b"=", b"==") and piece.endswith(padding)
    carried = b""  # of a group of four that goes on in the next piece
    made = padded = 0
    for piece in text:
        groups = [memoryview(piece)]
        if carried:
            missing = 4 - len(carried)
            groups = [memoryview(carried + piece[:missing]), groups[0][missing:]]
        carried = b""
        for group in groups:
            even = len(group) & ~3
            carried += group[even:]
            if even and padded:
                return False
            try:
                decoded = len(pybase64.b64decode(group[:even], validate=True))
            except ValueError:
                return False
            made += decoded
            padded = even // 4 * 3 - decoded
            if padded > 2:  # the standard decoder lets a group of nothing but padding pass
                return False
    return made > 0 and not carried


def address(value: object) -> str | None:
    """The text of a URL from an answer, else None."""
    return value if isinstance(value, str) and len(value) <= 8192 and _LINK.fullmatch(value) else None


def link(value: object) -> httpx.URL | None:
    """A URL from an answer, for a follow-up call. Whether its host is trusted with the key is the transport's part."""
    value = address(value)
    if value is None:
        return None
    try:
        return httpx.URL(value)
    except (httpx.InvalidURL, ValueError):
        return None


# --- failures ---------------------------------------------------------------------------------------------------------

_BY_STATUS: Mapping[int, ErrorKind] = {
    401: ErrorKind.AUTH,
    402: ErrorKind.AUTH,
    403: ErrorKind.AUTH,
    404: ErrorKind.AUTH,  # a model or endpoint this account does not have: as little the client's fault as a bad key
    408: ErrorKind.SERVER_ERROR,
    409: ErrorKind.SERVER_ERROR,
    412: ErrorKind.AUTH,  # account suspended
    425: ErrorKind.RATE_LIMITED,
    429: ErrorKind.RATE_LIMITED,
    499: ErrorKind.CANCELLED,
    524: ErrorKind.NO_ANSWER,  # an edge gave up waiting for a host that may still work
    529: ErrorKind.RATE_LIMITED,  # overloaded
}


def kind_of(response: httpx.Response) -> ErrorKind:
    """What the status alone says about a complete answer outside 2xx."""
    status = response.status_code
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status == 503 and retry_after_s(response.headers) is not None:
        return ErrorKind.RATE_LIMITED
    return ErrorKind.BAD_REQUEST if 400 <= status < 500 else ErrorKind.SERVER_ERROR


def failure(
    response: httpx.Response,
    kind: ErrorKind | None = None,
    *,
    message: object = None,
    code: object = None,
    param: str | None = None,
    billed: Billed | None = None,
    evidence: ImageResult | None = None,
) -> ProviderError:
    """The ProviderError of an answer; ``kind`` where the provider's codes know better than the status.

    ``message`` is the provider's prose and is quoted cleaned, but never for AUTH: those texts quote keys and accounts.
    ``evidence``: what the answer says about the bill in spite of the failure, as the result it would have been.
    """
    kind = kind or kind_of(response)
    quoted = None if kind is ErrorKind.AUTH else reason(message)
    return ProviderError(
        kind,
        quoted or _DEFAULT_MESSAGES.get(kind, "The provider failed."),
        status=response.status_code,
        billed=billed,
        retry_after_s=retry_after_s(response.headers),
        code=reason(code, 80),
        param=param,
        provider_request_id=request_id(response),
        evidence=evidence,
    )


_DEFAULT_MESSAGES: Mapping[ErrorKind, str] = {
    ErrorKind.AUTH: "The provider refused this installation's credential, credit or access to the model.",
    ErrorKind.RATE_LIMITED: "The provider takes no more requests at the moment.",
    ErrorKind.BAD_REQUEST: "The provider did not accept the request.",
    ErrorKind.REFUSED: "The request was rejected by the provider's safety system.",
    ErrorKind.SERVER_ERROR: "The provider had an internal error.",
    ErrorKind.NO_ANSWER: "The provider gave no answer that could be read.",
    ErrorKind.UNUSABLE: "The provider reported success but delivered no picture.",
    ErrorKind.DOWNLOAD: "The picture was made but is no longer available at the provider.",
    ErrorKind.CANCELLED: "The generation was cancelled.",
}


_SECRETS = re.compile(
    r"""
      https?://\S+                                                         # links show hosts and signatures
    | (?i:bearer|key|token)[ ]+[\w:.\-]{12,}
    | \b(?:sk|key|r8|hf|xai|AIza)[-_]?[\w-]{12,}                           # providers' key prefixes
    | [\w.+-]+@[\w-]+\.[\w.-]+
    | \b(?:[a-z0-9-]+\.)+(?:com|ai|net|org|io|dev|xyz|cloud|internal|local|svc)\b(?::\d+)?
    | \b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b
    | \S{120,}
    """,
    re.VERBOSE,
)
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


def reason(value: object, limit: int = _REASON_CHARACTERS) -> str | None:
    """The provider's words fit for an end user: one line, short, without links, hosts, addresses, keys or traces."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    words = text(value)
    if words is None or "Traceback (most recent call last)" in words:
        return None
    words = _BLANKS.sub(" ", words[: 2 * _REASON_CHARACTERS]).strip()
    words = _SECRETS.sub("[…]", words)
    return (words if len(words) <= limit else words[: limit - 1] + "…") or None


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds to wait from ``retry-after-ms`` or ``Retry-After``; a date counts from the answer's own ``Date``."""
    milliseconds = _wait(headers.get("retry-after-ms"), 1000)
    if milliseconds is not None:
        return milliseconds
    value = headers.get("retry-after")
    wait = _wait(value, 1)
    if wait is not None or value is None:
        return wait
    try:
        until, now = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("date", ""))
        return min(max(0.0, (until - now).total_seconds()), _DAY_S)
    except (TypeError, ValueError, OverflowError):
        return None


def _wait(value: str | None, per_second: int) -> float | None:
    try:
        number = float(value) / per_second if value else math.nan
    except ValueError:
        return None
    return min(number, _DAY_S) if number >= 0 else None


_REQUEST_ID_HEADERS = (b"x-request-id", b"x-fal-request-id", b"apim-request-id", b"cf-ray")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def request_id(response: httpx.Response) -> str | None:
    for name in _REQUEST_ID_HEADERS:
        if (found := header(response, name)) is not None:
            return identifier(found)
    return None


def identifier(value: object) -> str | None:
    """An id fit for logs, URLs and the ledger, else None."""
    return value if isinstance(value, str) and _REQUEST_ID.fullmatch(value) else None


def unusable(
    response: httpx.Response, message: str | None = None, evidence: ImageResult | None = None
) -> ProviderError:
    """A success without a picture: paid for, and counted against the provider."""
    return failure(response, ErrorKind.UNUSABLE, message=message, evidence=evidence)


def delivered(
    response: httpx.Response,
    result: ImageResult,
    withheld: int,
    request: ImageRequest | None,
    *,
    withheld_billed: Billed | None = None,
) -> ImageResult:
    """The result, if it holds pictures; else REFUSED or UNUSABLE, with the result as evidence of what is paid.

    ``withheld``: pictures the provider made and kept back or blanked for their content. One is enough to refuse: the
    request would meet the same judgement again, so it must not go on to another provider as a failure would. That fewer
    pictures came than were asked for is left to the gateway to judge.
    """
    if withheld:
        raise failure(response, ErrorKind.REFUSED, billed=withheld_billed, evidence=result)
    if not result.images:
        raise failure(response, ErrorKind.UNUSABLE, evidence=result)
    missing = (request.n if request else 0) - len(result.images)
    if missing > 0:
        message = f"The provider made {missing} pictures fewer than asked."
        return replace(result, warnings=(*result.warnings, Warn("fewer_images", message, "n")))
    return result
