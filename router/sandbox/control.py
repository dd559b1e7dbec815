"""The sandbox's own endpoints under ``/_control``: order faults, read invoices and calls, start over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.sandbox.emulator import Emulator
from router.sandbox.faults import KINDS, SPELLINGS
from router.sandbox.world import World


def routes(world: World, emulators: Mapping[str, Emulator]) -> list[Route]:
    """Everything under ``/_control``."""

    def known(request: Request) -> str | None:
        provider = request.path_params.get("provider")
        return provider if provider is None or provider in emulators else ""

    async def order(request: Request) -> Response:
        try:
            settings = json.loads(await request.body())
            if not isinstance(settings, dict):
                raise ValueError("expected a JSON object")
            if settings.get("provider") not in (None, *emulators):
                raise ValueError(f"unknown provider; known: {', '.join(emulators)}")
            rule = world.faults.order(settings)
        except (ValueError, TypeError) as problem:
            return JSONResponse({"error": str(problem)}, 400)
        return JSONResponse(rule.as_dict(world.now()), 201)

    async def faults(request: Request) -> Response:
        return JSONResponse({"faults": world.faults.listing(), "kinds": dict(KINDS), "spellings": list(SPELLINGS)})

    async def clear(request: Request) -> Response:
        world.faults.clear()
        return Response(status_code=204)

    async def invoice(request: Request) -> Response:
        provider = known(request)
        if provider == "":
            return _unknown(emulators)
        lines = request.query_params.get("lines", "1") != "0"
        return JSONResponse(world.invoice.statement(None if provider is None else [provider], lines=lines))

    async def calls(request: Request) -> Response:
        provider = known(request)
        if provider == "":
            return _unknown(emulators)
        names = emulators if provider is None else [provider]
        return JSONResponse({name: world.calls.summary(name) for name in names})

    async def reset(request: Request) -> Response:
        world.restart()
        for emulator in emulators.values():
            emulator.start()
        return Response(status_code=204)

    async def index(request: Request) -> Response:
        body = {name: {"hosts": list(each.hosts), "key": each.key} for name, each in emulators.items()}
        return JSONResponse({"seed": world.seed, "time_scale": world.time_scale, "providers": body})

    table: list[tuple[str, str, Callable[[Request], Any]]] = [
        ("GET", "/", index),
        ("POST", "/faults", order),
        ("GET", "/faults", faults),
        ("DELETE", "/faults", clear),
        ("GET", "/invoice", invoice),
        ("GET", "/invoice/{provider}", invoice),
        ("GET", "/calls", calls),
        ("GET", "/calls/{provider}", calls),
        ("POST", "/reset", reset),
    ]
    return [Route(path, handler, methods=[method]) for method, path, handler in table]


def _unknown(emulators: Mapping[str, Emulator]) -> Response:
    return JSONResponse({"error": f"unknown provider; known: {', '.join(emulators)}"}, 404)
