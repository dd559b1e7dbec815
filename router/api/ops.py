"""Health, readiness and metrics, for load balancers and Prometheus. No key, no secrets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import orjson
from starlette.types import Receive, Scope, Send

from router.api.http import Exchange, Guarded, send_json

Ready = Callable[[], Mapping[str, str]]
"""What is not ready, by name; empty when all is well."""

Metrics = Callable[[str], Awaitable[tuple[bytes, str]]]
"""An Accept header -> the metrics page and its content type."""


class Health(Guarded):
    """200 as long as the process answers."""

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, b'{"status":"ok"}')


class Readiness(Guarded):
    """200 when requests can be served, else 503 with the reasons."""

    def __init__(self, ready: Ready) -> None:
        self._ready = ready

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        problems = dict(self._ready())
        body = {"status": "not ready", "problems": problems} if problems else {"status": "ready"}
        await send_json(send, 503 if problems else 200, orjson.dumps(body))


class MetricsPage(Guarded):
    """What Prometheus scrapes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        page, content_type = await self._metrics(exchange.header(b"accept"))
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", content_type.encode("latin-1")),
                    (b"content-length", b"%d" % len(page)),
                ],
            }
        )
        await send({"type": "http.response.body", "body": page})
