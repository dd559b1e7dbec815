"""Server-sent events for ``stream: true``: partial pictures while they come, one completed event per picture.

The status is committed only when the gateway says that the request is accepted (or with the first event): until then
a failure is an ordinary error with its own status.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from starlette.types import Receive, Send

from router.api.http import ClientGone, Exchange, as_request_error, log
from router.api.reply import NO_USAGE, base64_text, complete_usage, dump, echoed_quality, metadata_of
from router.api.requests import Record, Requests
from router.errors import RequestError
from router.types import Accepted, Completed, GeneratedImage, ImageRequest, Operation, PartialImage, Warn

HEARTBEAT_S = 12.0
"""Longest silence on a stream, seconds."""

_PREFIX = {Operation.GENERATE: "image_generation", Operation.EDIT: "image_edit"}
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Events:
    """The events of one stream, written one at a time."""

    def __init__(self, request: ImageRequest, send: Send) -> None:
        self._request = request
        self._send = send
        self._lock = asyncio.Lock()
        self._beat: asyncio.Task[None] | None = None
        self._gone = False
        self._partials = 0
        self.started = False

    async def run(self, requests: Requests, record: Record, exchange: Exchange, receive: Receive) -> None:
        """See the request to its end. RequestError only while nothing has been sent."""
        try:
            completed = exchange.completed = await requests.wait(record, receive)
            await self.start()
            await self.completed(completed)
        except ClientGone:
            self._gone = True
            raise
        except Exception as error:
            if not self.started:
                raise
            exchange.error = as_request_error(error)
            if exchange.error.status == 500:
                log.error("unhandled error in a stream", exc_info=error, extra={"request_id": exchange.request_id})
            await self.error(exchange.error)
        finally:
            if self._beat is not None:
                self._beat.cancel()
        await self._send({"type": "http.response.body", "body": b""})

    async def emit(self, event: Accepted | PartialImage) -> None:
        """What the gateway tells while it works. A client that has left is told nothing more."""
        if self._gone:
            return
        await self.start()
        if isinstance(event, PartialImage):
            await self.partial(event)

    async def start(self) -> None:
        async with self._lock:
            if self.started:
                return
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            self._beat = asyncio.create_task(self._heartbeat())

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._write(b": keep-alive\n\n")

    async def _write(self, *pieces: bytes) -> None:
        async with self._lock:
            for piece in pieces:
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def partial(self, event: PartialImage) -> None:
        if event.index >= self._request.partial_images:
            return
        self._partials += 1
        await self._picture("partial_image", event.image, {"partial_image_index": event.index}, None)

    async def completed(self, completed: Completed) -> None:
        """One event per picture; what concerns the whole request (tokens, cost) is told once, with the last."""
        if self._request.partial_images and not self._partials:
            told = Warn("no_partial_images", "The provider made no partial images.", "partial_images")
            completed = replace(completed, warnings=(*completed.warnings, told))
        *others, last = completed.images
        for image in others:
            await self._picture("completed", image, {"usage": NO_USAGE}, completed)
        whole = {
            "usage": complete_usage(completed.usage) or NO_USAGE,
            "id": completed.request_id,
            "metadata": metadata_of(completed, self._request),
        }
        await self._picture("completed", last, whole, completed)

    async def error(self, error: RequestError) -> None:
        body = {"type": "error"} | error.body()
        await self._write(b"event: error\ndata: " + dump(body) + b"\n\n")

    async def _picture(
        self, kind: str, image: GeneratedImage, more: dict[str, Any], completed: Completed | None
    ) -> None:
        request = self._request
        name = f"{_PREFIX[request.operation]}.{kind}"
        quality = echoed_quality(completed, request) if completed is not None else request.quality
        background = (completed.background if completed is not None else None) or request.background
        size = image.size or request.size
        rest = {
            "created_at": completed.created if completed is not None else int(time.time()),
            "size": str(size) if size is not None else "auto",
            "quality": quality if quality in ("low", "medium", "high", "xhigh", "max") else "auto",
            "background": background if background in ("transparent", "opaque") else "auto",
            "output_format": image.format or request.output_format or "png",
            **more,
        }
        text = await base64_text(image)
        await self._write(
            f'event: {name}\ndata: {{"type":"{name}","b64_json":"'.encode(),
            *text,
            b'",' + dump(rest)[1:] + b"\n\n",
        )
