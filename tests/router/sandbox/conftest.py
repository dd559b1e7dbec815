"""One sandbox on a port of its own, in a thread, for synchronous and asynchronous clients alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
import pytest

from router import sandbox as package
from router.sandbox.pictures import Brief, paint


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
        return self.http.get(f"/_control/invoice/{provider}").json()

    def billed(self, provider: str) -> Decimal:
        return Decimal(self.invoice(provider)["total"])

    def calls(self, provider: str) -> dict[str, Any]:
        return self.http.get(f"/_control/calls/{provider}").json()[provider]


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


@pytest.fixture(scope="session")
def server() -> Iterator[Sandbox]:
    port, stop = start(time_scale=0)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=20) as http:
        yield Sandbox(url, http)
    stop()


@pytest.fixture
def sandbox(server: Sandbox) -> Sandbox:
    """The sandbox as it is after its start: no faults, an empty invoice, the first seeds again."""
    server.http.post("/_control/reset")
    return server


@pytest.fixture(scope="session")
def source() -> bytes:
    """A 512x512 picture to edit."""
    return paint(Brief("source", "a green forest", 1, (512, 512)))


@pytest.fixture(scope="session")
def large() -> bytes:
    """A 1920x1080 picture to edit: 1.98 megapixels."""
    return paint(Brief("source", "a blue sea", 1, (1920, 1080), "jpeg"))
