"""Pages for people: what the router believes and spends now, and how to point a client at it. Read-only, no script."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from pricing import money_text
from router.types import Model

_TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("router.console"), autoescape=True)
_TEMPLATES.filters["money"] = money_text
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Recent:
    """One attempt in the list of the latest."""

    opened_at: str
    request_id: str
    target: str
    state: str
    outcome: str | None
    latency_ms: int | None
    cost_nanos: int
    currency: str
    basis: str | None


class Figures(Protocol):
    """Where the console's figures come from. ``costs`` and ``recent`` read the ledger, in a thread."""

    def routing(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]: ...
    def costs(self) -> Sequence[Any]: ...
    def recent(self) -> Sequence[Recent]: ...


def console_routes(figures: Figures, models: Iterable[Model], admits: Callable[[str], bool]) -> list[BaseRoute]:
    """``admits`` says whether a client key may look; browsers give it as the password of HTTP basic."""
    models = tuple(models)

    async def console(_: Request) -> Response:
        costs, recent = await asyncio.gather(asyncio.to_thread(figures.costs), asyncio.to_thread(figures.recent))
        targets = [
            {"target": target, "operation": operation, **facts}
            for target, operations in figures.routing().items()
            for operation, facts in operations.items()
        ]
        return _page("console.html", targets=targets, costs=costs, recent=recent)

    async def docs(request: Request) -> Response:
        return _page("docs.html", base=str(request.base_url).rstrip("/"), models=models, model=models[0].slug)

    return [
        Route("/console", _guarded(console, admits), methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
    ]


def _page(template: str, **context: Any) -> Response:
    return HTMLResponse(_TEMPLATES.get_template(template).render(context), headers=_HEADERS)


def _guarded(
    page: Callable[[Request], Awaitable[Response]], admits: Callable[[str], bool]
) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        if admits(_password(request)):
            return await page(request)
        return Response(
            "A client key is needed: give it as the password.",
            401,
            {"WWW-Authenticate": 'Basic realm="pixelroute console", charset="UTF-8"'},
        )

    return guarded


def _password(request: Request) -> str:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""
