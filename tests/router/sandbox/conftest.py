"""One sandbox for all tests here, as new for each of them; pictures to edit; a receiver of webhooks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from router.sandbox.pictures import Brief, paint
from tests.router.sandbox.running import Hook, Sandbox, start


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


@pytest.fixture
def hook() -> Iterator[Hook]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            received.took({name.lower(): value for name, value in self.headers.items()}, body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received = Hook(f"http://127.0.0.1:{listener.server_port}/hook")
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
    thread.start()
    yield received
    listener.shutdown()
    thread.join()
    listener.server_close()
