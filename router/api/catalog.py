"""GET /v1/models: what the calling key may use."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from router.api.auth import Authenticator
from router.api.http import Exchange, Guarded, send_json
from router.api.ports import GatewayPort
from router.api.reply import dump
from router.errors import RequestError


class Models(Guarded):
    """The list. Extra keys per model (sizes, prices, providers) are the gateway's to add."""

    def __init__(self, gateway: GatewayPort, auth: Authenticator) -> None:
        self._gateway = gateway
        self._auth = auth

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        caller = exchange.caller = self._auth.caller(exchange)
        body = dump({"object": "list", "data": self._gateway.models(caller)})
        await send_json(send, 200, body)


class Model(Guarded):
    """One model. Its id may hold slashes, sent as they are or as %2F."""

    def __init__(self, gateway: GatewayPort, auth: Authenticator) -> None:
        self._gateway = gateway
        self._auth = auth

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        caller = exchange.caller = self._auth.caller(exchange)
        name: str = scope["path_params"]["name"]
        found = self._gateway.model(name, caller)
        if found is None:
            raise RequestError(404, f"The model '{name[:80]}' does not exist.", code="model_not_found", param="model")
        await send_json(send, 200, dump(found))
