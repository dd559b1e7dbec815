"""From what the provider delivered to what the client asked for: fetched, measured, converted, kept.

Pictures are measured from their own bytes, whatever anybody said about them: the client is told the true size, and
megapixels are charged by it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Protocol

import pybase64

from pricing import ImageSize
from router import media
from router.blob import Blob
from router.errors import SERVER, ErrorKind, ProviderError, RequestError
from router.records import changed, record
from router.types import GeneratedImage, ImageRequest, ImageResult, Operation, Provider, Warn

log = logging.getLogger(__name__)

_HEAD = 4096  # characters of base64 that are enough to read any header we know
_OFF_LOOP = 128 * 1024  # bytes from which decoding and encoding leave the event loop


class Downloads(Protocol):
    """The part of the transport that fetches a provider's picture."""

    async def download(
        self, url: str, provider: Provider, *, timeout_s: float, max_bytes: int
    ) -> tuple[bytes, str | None]: ...


class Store(Protocol):
    """Keeps pictures that need a URL; answers with the path and query of a signed link."""

    async def put(self, data: bytes, format: str, request_id: str) -> str: ...


@record
class Delivered:
    """The pictures as the client gets them, and the sizes that were really made."""

    images: tuple[GeneratedImage, ...]
    made: tuple[ImageSize, ...]  # as they came from the provider: what is charged
    format: str
    warnings: tuple[Warn, ...]


class Delivery:
    """Turns an ImageResult into what the client asked for."""

    def __init__(self, downloads: Downloads, store: Store, *, max_bytes: int) -> None:
        self._downloads = downloads
        self._store = store
        self._max_bytes = max_bytes

    async def fetch(self, result: ImageResult, provider: Provider, *, timeout_s: float) -> ImageResult:
        """The result with bytes or base64 for every picture, measured. ProviderError(DOWNLOAD) if one cannot be had."""
        images = result.images
        if any(image.url is not None for image in images):
            images = tuple(await asyncio.gather(*(self._fetched(image, provider, timeout_s) for image in images)))
        return changed(result, images=tuple([measured(image) for image in images]))

    async def _fetched(self, image: GeneratedImage, provider: Provider, timeout_s: float) -> GeneratedImage:
        if image.url is None:
            return image
        data, _ = await self._downloads.download(image.url, provider, timeout_s=timeout_s, max_bytes=self._max_bytes)
        return changed(image, url=None, data=data)

    async def hand_over(
        self,
        result: ImageResult,
        request: ImageRequest,
        ordered: ImageSize | None,
        response_format: str,
        request_id: str,
    ) -> Delivered:
        """The fetched pictures in the size, format and form the client asked for. ``ordered`` is the size that the
        provider was asked for: by the size policy another than the client's.

        RequestError if the client wants nothing but links and the store cannot take the pictures.
        """
        warnings = list(result.warnings)
        made = tuple([image.size for image in result.images if image.size is not None])
        images = list(result.images)
        resized = self._sized(images, request, ordered or request.size, warnings)
        wanted = request.output_format
        converted = wanted is not None and any(image.format != wanted for image in images)
        if converted:
            warnings.append(
                Warn("output_format_converted", f"Pictures were converted to {wanted} by the router.", "output_format")
            )
        if converted or resized is not None:
            images = list(await asyncio.gather(*(self._remade(image, resized, request) for image in images)))
        if response_format in ("url", "both"):
            try:
                images = list(await asyncio.gather(*(self._linked(image, request_id) for image in images)))
            except OSError as problem:  # a full disk, storage that is away
                log.error("pictures of %s not stored", request_id, exc_info=problem)
                if response_format == "url":
                    raise RequestError(
                        500, "The pictures were made but could not be stored.", code="result_lost", type=SERVER
                    ) from problem
                warnings.append(Warn("url_unavailable", "The pictures could not be stored, so they have no URL."))
        if response_format == "url":
            images = [image.linked(image.url) for image in images]
        return Delivered(tuple(images), made, images[0].format or "png", tuple(warnings))

    def _sized(
        self,
        images: Sequence[GeneratedImage],
        request: ImageRequest,
        ordered: ImageSize | None,
        warnings: list[Warn],
    ) -> ImageSize | None:
        """The size that the pictures have to be brought to, None if they stay as they are; warns of both."""
        size = request.size
        if size is None:
            return None
        made = next((image.size for image in images if image.size != size), None)
        if made is None:
            return None
        if request.size_policy == "nearest":
            known = made == ordered
            code, told = ("size_nearest", "is the nearest to") if known else ("size_changed", "was made instead of")
            warnings.append(Warn(code, f"{made} {told} the {size} that was asked for.", "size"))
            return None
        code = "size_fitted" if ordered != size else "size_changed"
        warnings.append(Warn(code, f"The provider made {made}; the router scaled and cropped it to {size}.", "size"))
        return size

    async def _remade(self, image: GeneratedImage, size: ImageSize | None, request: ImageRequest) -> GeneratedImage:
        """The picture in another size, format or both. RequestError if its bytes turn out to be damaged."""
        form = request.output_format or (image.format if image.format in media.CONVERTIBLE else "png")
        size = size or image.size
        if (image.size, image.format) == (size, form):
            return image
        data = await raw(image)
        try:
            made = await asyncio.to_thread(media.convert, data, form, compression=request.output_compression, size=size)
        except media.BadImage as error:
            raise RequestError(
                502, "The provider's picture is damaged.", code="all_providers_failed", type=SERVER
            ) from error
        return changed(image, data=made, b64=None, plain=False, format=form, size=size)

    async def _linked(self, image: GeneratedImage, request_id: str) -> GeneratedImage:
        data = await raw(image)
        link = await self._store.put(data, image.format or "png", request_id)
        return changed(image, url=link)


async def raw(image: GeneratedImage) -> bytes:
    """The picture's bytes, decoded off the event loop when they are many."""
    if image.data is not None:
        return image.data
    text = bytes(image.b64 or b"")
    if len(text) > _OFF_LOOP:
        return await asyncio.to_thread(pybase64.b64decode, text)
    return pybase64.b64decode(text)


def measured(image: GeneratedImage) -> GeneratedImage:
    """The picture with size and format read from its own header; ProviderError(UNUSABLE) if it is none."""
    found = media.probe(image.data) if image.data is not None else media.probe_base64(image.b64 or Blob())
    if found is None:
        raise ProviderError(ErrorKind.UNUSABLE, "The provider's answer holds no readable picture.")
    if image.size == found.size and image.format == found.format:
        return image
    return image.measured(found.size, found.format)


def merged(results: tuple[ImageResult, ...]) -> ImageResult:
    """Several calls that together made one request's pictures, as one result."""
    first, *others = results
    if not others:
        return first
    tokens: dict[str, int] = {}
    for result in results:
        for name, count in result.tokens.items():
            tokens[name] = tokens.get(name, 0) + count
    reported = first.reported
    if reported is not None:
        if all(other.reported is not None and other.reported.unit == reported.unit for other in others):
            total = sum((result.reported.amount for result in results if result.reported), start=reported.amount * 0)
            reported = replace(reported, amount=total)
        else:
            reported = None  # an incomplete report is no report
    seconds = [result.seconds for result in results if result.seconds is not None]
    return replace(
        first,
        images=tuple(image for result in results for image in result.images),
        tokens=tokens,
        usage=_merged_usage([result.usage for result in results]),
        reported=reported,
        seconds=sum(seconds, start=Decimal()) if len(seconds) == len(results) else None,
        warnings=tuple(dict.fromkeys(warning for result in results for warning in result.warnings)),
    )


def _merged_usage(usages: list[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    if any(usage is None for usage in usages):
        return None

    def add(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
        total: dict[str, Any] = {}
        for name, value in parts[0].items():
            if isinstance(value, Mapping):
                total[name] = add([part.get(name) or {} for part in parts])
            elif isinstance(value, int):
                total[name] = sum(int(part.get(name) or 0) for part in parts)
        return total

    return add([usage for usage in usages if usage is not None])


def response_format(request: ImageRequest) -> str:
    """Which of url and b64_json each picture carries when the client did not say (contract R5)."""
    if request.stream:
        return "b64_json"  # events carry base64, whatever was asked (contract S5)
    if request.response_format is not None:
        return request.response_format
    if request.model.startswith(("gpt-image", "chatgpt-image")):
        return "b64_json"
    return "both" if request.operation is Operation.EDIT else "url"
