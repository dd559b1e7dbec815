"""Answers that are no proper answers: silence, broken connections, streams that stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

CONNECTION = "sandbox.connection"  # ASGI extension of our server: the transport, so that a connection can be cut


class Hang(Response):
    """Nothing, until the client goes away, the time is over, or the sandbox closes."""

    def __init__(self, seconds: float, closing: asyncio.Event) -> None:
        super().__init__(status_code=504)
        self._seconds = seconds
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        waits = {asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(self._closing.wait())}
        try:
            await asyncio.wait(waits, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        await _hang_up(scope, receive, abort=True)


class Broken(Response):
    """The first ``share`` of an answer's body, then a closed connection; nothing at all without an answer."""

    def __init__(self, whole: Response | None, share: float) -> None:
        super().__init__(status_code=whole.status_code if whole else 502)
        self._whole = whole
        self._share = share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._whole is not None:
            body = bytes(self._whole.body)
            start = {"type": "http.response.start", "status": self.status_code, "headers": self._whole.raw_headers}
            await send(start)
            await send({"type": "http.response.body", "body": body[: int(len(body) * self._share)], "more_body": True})
        await _hang_up(scope, receive, abort=self._whole is None)


class EventStream(Response):
    """Server-sent events; an ``events`` iterator that raises Break leaves the stream unfinished."""

    class Break(Exception):
        """Close the connection now."""

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status_code=200, headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except self.Break:
            await _hang_up(scope, receive, abort=False)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _hang_up(scope: Scope, receive: Receive, *, abort: bool) -> None:
    """Close the connection under the response. Other servers than ours see an unfinished response instead."""
    if (transport := scope.get("extensions", {}).get(CONNECTION)) is not None:
        transport.abort() if abort else transport.close()
        await _disconnected(receive)
