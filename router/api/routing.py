"""GET /v1/routing: what the router believes of every target. POST .../drain and .../undrain: the operator's hand.

The hand reaches every replica, and holds after a restart; the answer says how far it got.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import orjson
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from router.api.auth import Authenticator, Key
from router.api.http import Exchange, Guarded, send_json
from router.errors import RequestError


class RoutingPort(Protocol):
    """The selector as far as operators see it."""

    async def snapshot(self, target: str | None = None) -> Mapping[str, Any]: ...
    def scope(self) -> Mapping[str, Any]: ...
    def knows(self, target: str) -> bool: ...
    async def steer(self, target: str, out: bool) -> Mapping[str, Any]: ...


class Routing(Guarded):
    """The live table, for any client key."""

    def __init__(self, port: RoutingPort, auth: Authenticator) -> None:
        self._port = port
        self._auth = auth

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        self._auth.caller(exchange)
        body = {"object": "routing", "scope": self._port.scope(), "targets": await self._port.snapshot()}
        await send_json(send, 200, orjson.dumps(body))


class Drain(Guarded):
    """Takes a target out by hand, or lets it in again. For the admin key: client keys spend, they do not steer."""

    def __init__(self, port: RoutingPort, out: bool, admin_key: str | None) -> None:
        self._port = port
        self._out = out
        self._admin_key = admin_key

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        self._admit(exchange)
        target = scope["path_params"]["target"]
        if not self._port.knows(target):
            raise RequestError(404, f"There is no target {target[:80]!r}.", code="target_not_found", param="target")
        reach = await self._port.steer(target, self._out)
        state = (await self._port.snapshot(target)).get(target, {})
        body = {"target": target, "drained": self._out, "reach": reach, "state": state}
        await send_json(send, 200, orjson.dumps(body))

    def _admit(self, exchange: Exchange) -> None:
        if self._admin_key is None:
            raise RequestError(403, "Steering needs an admin key: set PIXELROUTE_ADMIN_KEY.", code="admin_key_not_set")
        sent = exchange.header(b"authorization").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(sent.encode(), self._admin_key.encode()):
            raise RequestError(401, "Incorrect admin key provided.", code="invalid_api_key")


def routing_routes(port: RoutingPort, keys: Iterable[Key], admin_key: str | None) -> list[BaseRoute]:
    return [
        Route("/v1/routing", Routing(port, Authenticator(keys)), methods=["GET"]),
        Route("/v1/routing/{target:path}/drain", Drain(port, True, admin_key), methods=["POST"]),
        Route("/v1/routing/{target:path}/undrain", Drain(port, False, admin_key), methods=["POST"]),
    ]
