"""Servers in a thread of the test's own process: they live on when a router is killed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar

from starlette.applications import Starlette

from router import sandbox
from tests.router.serving import served

T = TypeVar("T")


class Beside:
    """An event loop in a thread, and what is served in it until the block ends."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def serve(self, app: Starlette) -> str:
        """The application's base URL."""
        return self._run(self._stack.enter_async_context(served(app)))

    def sandbox(self, speed: float, middleware: Any = None, **options: Any) -> str:
        """The origin of the provider emulators, working at this share of the providers' usual times."""

        async def start() -> str:
            app = sandbox.build(time_scale=speed)
            if middleware is not None:
                app.add_middleware(middleware, **options)
            port, stop = await sandbox.serve(app, "127.0.0.1", 0)
            self._stack.push_async_callback(stop)
            return f"http://127.0.0.1:{port}"

        return self._run(start())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)
