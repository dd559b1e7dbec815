"""Writing what a provider is sent: the fields of a request, and bodies with pictures made with one copy of each.

Option names follow one rule in all adapters. ``target.options`` go out with every call, except the names the adapter
lists in ``settings``, which steer the adapter. A client's ``extra`` fields win over them, but never over the fields the
adapter writes itself. ``parameters`` (a setting of every adapter) lists the extra fields a model knows, or maps
them to the provider's names for them; where it is given, other extra fields are dropped with a warning.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import httpx
import orjson
import pybase64

from router.errors import Billed, ErrorKind, ProviderError
from router.types import ImageRequest, InputImage, Operation, Target, Warn
from router.whole import Endpoint, Ready

JSON_HEADERS = [(b"content-type", b"application/json"), (b"accept", b"application/json")]
ACCEPT_HEADERS = [(b"accept", b"application/json")]

COMMON_SETTINGS = frozenset({"parameters"})

_NEVER = frozenset(
    {"webhook", "webhook_url", "webhookURL", "webhook_secret", "webhook_events_filter", "fal_webhook", "callback"}
    | {"callback_url", "uploadEndpoint"}  # would make a provider call a host of the client's choosing
    | {"n", "num_images", "num_outputs", "numberResults", "max_images", "batch_size", "samples", "sampleCount"}
    | {"prompt", "model", "version"}  # what is bought, and how often, is decided before the adapter
)


@lru_cache(maxsize=512)
def endpoint(address: str) -> httpx.URL:
    """The parsed URL of a configured endpoint (parsing costs as much as all the rest of a small call)."""
    return Endpoint(address)


def post(
    url: httpx.URL, content: bytes | Pieces, headers: Sequence[tuple[bytes, bytes]] = JSON_HEADERS
) -> httpx.Request:
    stream: httpx.ByteStream | Pieces
    if isinstance(content, bytes):
        length, stream = len(content), httpx.ByteStream(content)
    else:
        length, stream = content.length, content
    own = [(b"host", url.netloc), (b"content-length", b"%d" % length)]
    return Ready("POST", url, [*own, *headers], stream)


def get(url: httpx.URL) -> httpx.Request:
    return httpx.Request("GET", url, headers=ACCEPT_HEADERS)


# --- fields -----------------------------------------------------------------------------------------------------------


def dropped(param: str, message: str = "This provider has no such option; it was not sent.") -> Warn:
    return Warn("parameter_dropped", message, param)


def offered(
    request: ImageRequest, target: Target, settings: Collection[str], reserved: Collection[str], warnings: list[Warn]
) -> dict[str, Any]:
    """The fields a call starts from: the target's options, then the client's extra fields, where they may go out.

    ``reserved`` are names the adapter writes itself or that would change what the request costs or where it goes.
    """
    fields = {name: value for name, value in target.options.items() if name not in settings}
    if not request.extra:
        return fields
    known = target.options.get("parameters")
    names = (
        known if isinstance(known, Mapping) else {name: name for name in (request.extra if known is None else known)}
    )
    for name, value in request.extra.items():
        if value is None:
            continue
        theirs = names.get(name)
        if not isinstance(theirs, str) or theirs in settings or theirs in reserved or theirs in _NEVER:
            warnings.append(dropped(name))
        else:
            fields[theirs] = value
    return fields


def model_id(request: ImageRequest, target: Target) -> str:
    """The provider's id of the model for this operation."""
    try:
        return target.endpoints[request.operation]
    except KeyError:
        raise ProviderError(
            ErrorKind.BAD_REQUEST, f"{target.key} does not offer {request.operation}.", billed=Billed.NO
        ) from None


def refuse_mask(request: ImageRequest) -> None:
    """Without its mask an edit would repaint the whole picture, so it is refused rather than dropped."""
    if request.mask is not None:
        raise ProviderError(ErrorKind.BAD_REQUEST, "This model takes no mask.", billed=Billed.NO, param="mask")


def inputs(request: ImageRequest, limit: int, *, markup: bool = False) -> tuple[InputImage, ...]:
    """The source pictures of an edit; too many, and a markup without a place, are refused rather than dropped."""
    if request.operation is Operation.GENERATE:
        return ()
    if request.markup is not None and not markup:
        message = "This model takes no markup."
        raise ProviderError(ErrorKind.BAD_REQUEST, message, billed=Billed.NO, param="markup")
    if len(request.images) > limit:
        message = f"This model takes at most {limit} source images."
        raise ProviderError(ErrorKind.BAD_REQUEST, message, billed=Billed.NO, param="image")
    return request.images


def quality(request: ImageRequest, target: Target, warnings: list[Warn]) -> str | None:
    """The provider's word for the quality asked for; None where it is not to be sent."""
    word = request.quality
    if word is None:
        return None
    theirs = target.qualities.get(word)
    if theirs is None and word in target.qualities.values():
        theirs = word
    if theirs is None and word not in ("auto", "standard"):
        warnings.append(dropped("quality", f"Quality {word!r} is not offered by this provider; its default was used."))
    return theirs


def picture_format(request: ImageRequest, target: Target) -> str:
    """The format to ask for: the client's if the target makes it, else the best to convert from. PNG by default."""
    wanted = request.output_format or "png"
    if wanted in target.formats or not target.formats:
        return wanted
    return "png" if "png" in target.formats else target.formats[0]


_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "quality": (None, "auto", "standard"),
    "background": (None, "auto", "opaque"),
    "moderation": (None, "auto"),
    "style": (None,),
    "input_fidelity": (None,),
    "seed": (None,),
    "output_compression": (None, 100),
}
"""OpenAI's options that only some providers have, with the values that lose nothing when they are not sent."""


def warn_unsupported(request: ImageRequest, warnings: list[Warn], *honoured: str) -> None:
    """A warning for each option the client set and this provider does not have."""
    for name, neutral in _NEUTRAL.items():
        if name not in honoured and getattr(request, name) not in neutral:
            warnings.append(dropped(name))


# --- bodies -----------------------------------------------------------------------------------------------------------

_JOIN_BELOW = 64 * 1024
_BASE64_STEP = 3 * 64 * 1024


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A large body of known length that is never put together: pictures are sent from where they lie.

    Base64 is made a piece at a time while the socket takes it. Beside the picture itself, an edit in flight holds
    256 KiB, and no page of memory is touched twice.
    """

    def __init__(self, parts: Sequence[bytes | Base64]) -> None:
        self._parts = parts
        self.length = sum(part.length if isinstance(part, Base64) else len(part) for part in parts)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, Base64):
                yield from part
            else:
                yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


class Base64:
    """The base64 text of a picture, made as it is read."""

    __slots__ = ("_data", "length")

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.length = (len(data) + 2) // 3 * 4

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), _BASE64_STEP):
            yield pybase64.b64encode(self._data[start : start + _BASE64_STEP])


def joined(parts: Sequence[bytes | Base64]) -> bytes | Pieces:
    pieces = Pieces(parts)
    return b"".join(pieces) if pieces.length < _JOIN_BELOW else pieces


class JsonBody:
    """JSON with pictures in it as base64.

    Each picture is a mark in the fields, and its text is put where the mark stands: a JSON encoder would need 2.6 ms
    for a picture of 4 MB. The mark is random, so no text of a client's can pose as one.
    """

    def __init__(self) -> None:
        self._mark = ""
        self._pictures: list[tuple[bytes, bytes]] = []

    def base64(self, image: InputImage) -> str:
        return self._place(b"", image)

    def data_uri(self, image: InputImage) -> str:
        return self._place(b"data:%b;base64," % image.media_type.encode(), image)

    def _place(self, prefix: bytes, image: InputImage) -> str:
        self._mark = self._mark or secrets.token_hex(12)
        self._pictures.append((prefix, bytes(image.data)))
        return f"{self._mark}{len(self._pictures) - 1:03d}"

    def dump(self, fields: Any) -> bytes | Pieces:
        content = dump(fields)
        if not self._pictures:
            return content
        text, *rest = content.split(self._mark.encode())
        parts: list[bytes | Base64] = []
        for chunk in rest:
            prefix, data = self._pictures[int(chunk[:3])]
            parts += (text + prefix, Base64(data))
            text = chunk[3:]
        return joined((*parts, text))


def dump(fields: Any) -> bytes:
    """JSON of a request body; a value no JSON can hold is the client's mistake."""
    try:
        return orjson.dumps(fields)
    except (orjson.JSONEncodeError, TypeError) as error:
        raise ProviderError(
            ErrorKind.BAD_REQUEST, "The request has a value that cannot be sent.", billed=Billed.NO
        ) from error


class Multipart:
    """``multipart/form-data`` written by hand, without a copy of any file.

    The boundary is random for each body: with a fixed one, a picture could carry parts of its own.
    """

    def __init__(self) -> None:
        self._boundary = secrets.token_hex(16).encode()
        self._parts: list[bytes | Base64] = []
        self._text = b""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"content-type", b"multipart/form-data; boundary=" + self._boundary), *ACCEPT_HEADERS]

    def text(self, name: str, value: object) -> None:
        """One scalar; booleans as ``true`` and ``false``, lists and objects as JSON."""
        content = value.encode("utf-8", "replace") if isinstance(value, str) else dump(value)
        head = b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % (self._boundary, _quoted(name))
        self._text += head + content + b"\r\n"

    def file(self, name: str, image: InputImage, stem: str = "image") -> None:
        head = b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\nContent-Type: %b\r\n\r\n' % (
            self._boundary,
            _quoted(name),
            f"{stem}.{image.format or 'bin'}".encode(),
            image.media_type.encode(),
        )
        self._parts += (self._text + head, *image.data)
        self._text = b"\r\n"

    def dump(self) -> bytes | Pieces:
        return joined((*self._parts, self._text + b"--%b--\r\n" % self._boundary))


def _quoted(name: str) -> bytes:
    """A field name as the HTML standard escapes it, so that a client's extra field cannot end its header line."""
    return name.encode("utf-8", "replace").replace(b'"', b"%22").replace(b"\r", b"%0D").replace(b"\n", b"%0A")
