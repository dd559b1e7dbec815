"""A sandbox on a port of its own, in a thread, for synchronous and asynchronous clients alike; a webhook receiver."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx

from router import sandbox as package


@dataclass(frozen=True)
class Sandbox:
    """A running sandbox as tests use it."""

    url: str
    http: httpx.Client

    def base(self, provider: str, name: str = "api") -> str:
        return self.url + package.BASES[provider][name]

    def key(self, provider: str) -> str:
        return package.KEYS[provider]

    def bearer(self, provider: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key(provider)}"}

    def fault(self, fault: str, **settings: Any) -> None:
        reply = self.http.post("/_control/faults", json={"fault": fault, **settings})
        assert reply.status_code == 201, reply.text

    def invoice(self, provider: str) -> dict[str, Any]:
        statement: dict[str, Any] = self.http.get(f"/_control/invoice/{provider}").json()
        return statement

    def billed(self, provider: str) -> Decimal:
        return Decimal(self.invoice(provider)["total"])

    def calls(self, provider: str) -> dict[str, Any]:
        calls: dict[str, Any] = self.http.get(f"/_control/calls/{provider}").json()[provider]
        return calls


def start(**settings: Any) -> tuple[int, Any]:
    """Serve in a thread; the port and a function that stops it."""
    up: list[Any] = []
    ready = threading.Event()

    async def main() -> None:
        port, stop = await package.serve(package.build(**settings), "127.0.0.1", 0)
        over = asyncio.Event()
        up.extend((port, asyncio.get_running_loop(), over))
        ready.set()
        await over.wait()
        await stop()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(20)
    port, loop, over = up

    def stop() -> None:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)
        assert not thread.is_alive()

    return port, stop


class Hook:
    """A receiver of webhooks: what came, in order."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self._news = threading.Condition()

    def took(self, headers: dict[str, str], body: bytes) -> None:
        with self._news:
            self.headers.append(headers)
            self.bodies.append(body)
            self._news.notify_all()

    def wait(self, count: int) -> list[Any]:
        """The first ``count`` messages, as soon as they are there."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.bodies) >= count, 10), f"only {len(self.bodies)} came"
            return [json.loads(body) for body in self.bodies[:count]]
