"""The HTTP face put together: routes, and the Starlette application around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Lifespan

from router.api.auth import Authenticator, Key
from router.api.catalog import Model, Models
from router.api.http import Exchange, Front, Guarded, Intake, as_request_error, exchange_of, new_request_id
from router.api.images import Edits, Face, Generations, Variations
from router.api.mediafiles import MediaFile
from router.api.openapi import OpenApi
from router.api.ops import Health, Metrics, MetricsPage, Readiness, Ready
from router.api.ports import Fetch, GatewayPort
from router.api.reply import encode_error
from router.api.requests import Requests, RequestState
from router.limits import Limiter
from router.mediastore import PATH, MediaStore

MIB = 1024 * 1024


def routes(
    gateway: GatewayPort,
    *,
    keys: Iterable[Key] = (),
    body_bytes: int = 64 * MIB,
    in_flight_bytes: int = 1024 * MIB,
    fetch: Fetch | None = None,
    public_url: str | None = None,
    media: MediaStore | None = None,
    requests: Requests | None = None,
    ready: Ready = dict,
    metrics: Metrics | None = None,
    started: Callable[[str], None] = lambda operation: None,
    limiters: Iterable[Limiter] = (),
    routers: Callable[[], int] = lambda: 1,
) -> list[BaseRoute]:
    """The application's routes, to be mounted at the root.

    ``requests``: those that keep their results in ``media``. ``limiters``: of the client keys that have limits, which
    so many ``routers`` hold together.
    """
    auth = Authenticator(keys)
    requests = requests or Requests(gateway, media)
    face = Face(
        gateway,
        requests,
        auth,
        Intake(body_bytes=body_bytes, in_flight_bytes=in_flight_bytes),
        fetch,
        public_url,
        started,
        {limiter.key: limiter for limiter in limiters},
        routers,
    )
    found: list[BaseRoute] = [
        Route("/v1/images/generations", Generations(face), methods=["POST"]),
        Route("/v1/images/edits", Edits(face), methods=["POST"]),
        Route("/v1/images/variations", Variations(face), methods=["POST"]),
        Route("/v1/models", Models(gateway, auth), methods=["GET"]),
        Route("/v1/models/{name:path}", Model(gateway, auth), methods=["GET"]),
        Route("/v1/requests/{request_id}", RequestState(requests, auth, face.base_url), methods=["GET", "DELETE"]),
        Route("/openapi.json", OpenApi(), methods=["GET"]),
        Route("/healthz", Health(), methods=["GET"]),
        Route("/readyz", Readiness(ready), methods=["GET"]),
    ]
    if media is not None:
        found.append(Route(PATH + "{name}", MediaFile(media), methods=["GET"]))
    if metrics is not None:
        found.append(Route("/metrics", MetricsPage(metrics), methods=["GET"]))
    return found


class _App(Starlette):
    """Starlette with ``Front`` around everything, its own error answers included."""

    front: Callable[[ASGIApp], ASGIApp]

    def build_middleware_stack(self) -> ASGIApp:
        return self.front(super().build_middleware_stack())


def build_app(
    routes: Sequence[BaseRoute],
    *,
    lifespan: Lifespan[Any] | None = None,
    new_id: Callable[[], str] = new_request_id,
    finished: Callable[[Exchange], None] | None = None,
) -> Starlette:
    """The ASGI application. Unknown paths, wrong methods and bugs get error objects; nothing redirects."""
    app = _App(
        routes=list(routes),
        lifespan=lifespan,
        exception_handlers={HTTPException: _on_error, Exception: _on_error},
    )
    app.router.redirect_slashes = False
    lanes = {
        (method, route.path): route.endpoint
        for route in routes
        if isinstance(route, Route) and isinstance(route.endpoint, Guarded) and "{" not in route.path
        for method in route.methods or ()
    }
    app.front = lambda inner: Front(inner, new_id=new_id, finished=finished, lanes=lanes)
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    refused = as_request_error(error)
    exchange_of(request.scope).error = refused
    body, headers = encode_error(refused)
    response = Response(body, refused.status, media_type="application/json")
    response.raw_headers += headers
    return response
