"""Server-sent events for ``stream: true``: partial pictures while they come, one completed event per picture.

The status is committed only when the gateway says that the request is accepted (or with the first event): until then
a failure is an ordinary error with its own status.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
from starlette.types import Receive, Send

from router.api.http import ClientGone, Exchange, as_request_error, log, unless_gone
from router.api.ports import GatewayPort
from router.api.reply import NO_USAGE, base64_text, complete_usage, echoed_quality
from router.errors import RequestError
from router.types import Accepted, Caller, Completed, GeneratedImage, ImageRequest, Operation, PartialImage

HEARTBEAT_S = 12.0
"""Longest silence on a stream, seconds."""

_PREFIX = {Operation.GENERATE: "image_generation", Operation.EDIT: "image_edit"}
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def stream(
    gateway: GatewayPort,
    request: ImageRequest,
    caller: Caller,
    exchange: Exchange,
    receive: Receive,
    send: Send,
) -> None:
    """Run the request and send its events. RequestError only while nothing has been sent."""
    events = _Events(request, send)
    beat: asyncio.Task[None] | None = None

    async def emit(event: Accepted | PartialImage) -> None:
        nonlocal beat
        await events.start()
        if beat is None:
            beat = asyncio.ensure_future(_heartbeat(events))
        if isinstance(event, PartialImage):
            await events.partial(event)

    try:
        completed = await unless_gone(receive, gateway.run(request, caller, request_id=exchange.request_id, emit=emit))
        exchange.completed = completed
        await events.start()
        await events.completed(completed)
    except ClientGone:
        raise
    except Exception as error:
        if not events.started:
            raise
        exchange.error = as_request_error(error)
        if exchange.error.status == 500:
            log.error("unhandled error in a stream", exc_info=error, extra={"request_id": exchange.request_id})
        await events.error(exchange.error)
    finally:
        if beat is not None:
            beat.cancel()
    await events.end()


async def _heartbeat(events: _Events) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        await events.write(b": keep-alive\n\n")


class _Events:
    """Writes the events of one stream, one at a time."""

    def __init__(self, request: ImageRequest, send: Send) -> None:
        self._request = request
        self._send = send
        self._lock = asyncio.Lock()
        self.started = False

    async def start(self) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})

    async def write(self, *pieces: bytes) -> None:
        async with self._lock:
            for piece in pieces:
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def partial(self, event: PartialImage) -> None:
        if event.index >= self._request.partial_images:
            return
        await self._picture("partial_image", event.image, {"partial_image_index": event.index}, None)

    async def completed(self, completed: Completed) -> None:
        usage = complete_usage(completed.usage) or NO_USAGE
        for number, image in enumerate(completed.images):
            # the tokens of the whole request, told once
            told = usage if number == len(completed.images) - 1 else NO_USAGE
            await self._picture("completed", image, {"usage": told}, completed)

    async def error(self, error: RequestError) -> None:
        body = {"type": "error"} | error.body()
        await self.write(b"event: error\ndata: " + orjson.dumps(body, default=str) + b"\n\n")

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
        await self.write(
            f'event: {name}\ndata: {{"type":"{name}","b64_json":"'.encode(),
            text,
            b'",' + orjson.dumps(rest)[1:] + b"\n\n",
        )
