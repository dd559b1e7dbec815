"""The sandbox on a port of its own, in the running event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router.sandbox.answers import CONNECTION


class _Protocol(HttpToolsProtocol):
    """Hands the connection to the application, because some faults are a connection that breaks."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self.transport}  # type: ignore[dict-item]  # the server passes it on as it is


async def serve(app: Starlette, host: str = "127.0.0.1", port: int = 0) -> tuple[int, Callable[[], Awaitable[None]]]:
    """Start serving; the port in use (``port=0`` takes a free one) and a function that stops it.

    Raises OSError if the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=512)
    # asyncio does this only for sockets that name their protocol; without it a kept-alive answer takes 40 ms more.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="auto",  # Runware speaks WebSocket too; without a library for it the rest still works
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    ticking = asyncio.create_task(server.main_loop())

    async def stop() -> None:
        await app.state.world.close()  # first, so that hanging answers end
        server.should_exit = True
        await ticking
        await server.shutdown(sockets=[listener])

    return listener.getsockname()[1], stop
