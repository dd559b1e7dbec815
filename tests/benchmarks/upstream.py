"""A host that speaks the OpenAI Images API as fast as Python can: canned bytes after the delay the prompt asks for.

Run as a process of its own: ``python -m tests.benchmarks.upstream``; prints its port. The path's first part says which
reply is wanted; a prompt that ends in ``@<milliseconds>`` how long to wait with it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
from typing import Any

import uvloop

from tests.benchmarks.pictures import large, small
from tests.benchmarks.wire import Messages

_DELAY = re.compile(rb"@(\d{5})")


def canned(port: int) -> dict[bytes, bytes]:
    """Reply by path part: a small picture, larger ones as base64, a link to the small one, the picture itself."""

    def reply(item: dict[str, str]) -> bytes:
        body = json.dumps({"created": 1763683200, "data": [item]}, separators=(",", ":")).encode()
        return _message(body, b"application/json")

    return {
        b"small": reply({"b64_json": base64.b64encode(small()).decode()}),
        b"large": reply({"b64_json": base64.b64encode(large(1_125_000)).decode()}),
        b"huge": reply({"b64_json": base64.b64encode(large(3_000_000)).decode()}),
        b"link": reply({"url": f"http://127.0.0.1:{port}/picture/1.png"}),
        b"picture": _message(small(), b"image/png"),
    }


def _message(body: bytes, media_type: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (media_type, len(body), body)


class Upstream(asyncio.Protocol):
    def __init__(self, replies: dict[bytes, bytes]) -> None:
        self._replies = replies
        self._messages = Messages(keep=4096)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for head, body, _ in self._messages.feed(data):
            reply = self._replies[head[head.index(b"/") + 1 :].partition(b"/")[0]]
            delay = _DELAY.search(body)
            if delay is None or delay[1] == b"00000":
                self._transport.write(reply)
            else:
                asyncio.get_running_loop().call_later(int(delay[1]) / 1000, self._answer, reply)

    def _answer(self, reply: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(reply)


async def main() -> None:
    loop = asyncio.get_running_loop()
    replies: dict[bytes, bytes] = {}
    server = await loop.create_server(lambda: Upstream(replies), "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    replies |= canned(port)
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
