"""Hosts on loopback that behave exactly as badly as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

CERTIFICATE = Path(__file__).with_name("localhost.pem")

Answer = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Host:
    """A listening host: what arrived, and over how many connections."""

    port: int
    connections: int = 0
    requests: list[Received] = field(default_factory=list)

    def url(self, path: str = "/", *, scheme: str = "http", name: str = "127.0.0.1") -> str:
        return f"{scheme}://{name}:{self.port}{path}"


@dataclass(frozen=True)
class Received:
    """A request as it came over the wire."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def path(self) -> str:
        return self.line.split()[1]


class Exchange:
    """One request being answered."""

    def __init__(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.reader = reader
        self._writer = writer

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def reply(self, body: bytes = b"ok", *, status: str = "200 OK", headers: str = "") -> None:
        await self.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Close with RST instead of FIN, as a crashing peer does."""
        opened = self._writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def hang(self) -> None:
        """Wait until the other side gives up."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


@contextlib.asynccontextmanager
async def host(
    answer: Answer, *, address: str = "127.0.0.1", tls: bool = False, read_body: bool = True
) -> AsyncIterator[Host]:
    """Serve ``answer`` for every request until the block ends; a failing ``answer`` fails the test."""
    failures: list[BaseException] = []
    running: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        found.connections += 1
        try:
            while (received := await _read(reader, read_body)) is not None:
                found.requests.append(received)
                await answer(Exchange(received, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the router hung up: what it was told to is what the test looks at
        except BaseException as error:
            failures.append(error)
        finally:
            running.discard(task)
            writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if tls else None
    if context is not None:
        context.load_cert_chain(CERTIFICATE)
    server = await asyncio.start_server(connected, address, 0, ssl=context, limit=2**20)
    found = Host(server.sockets[0].getsockname()[1])
    try:
        yield found
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if failures:
        raise failures[0]


async def _read(reader: asyncio.StreamReader, read_body: bool) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    line, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (entry.partition(":") for entry in lines)]
    known = {name.lower(): value for name, value in headers}
    body = b""
    if read_body and "content-length" in known:
        body = await reader.readexactly(int(known["content-length"]))
    elif read_body and known.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readuntil(b"\r\n")
        await reader.readuntil(b"\r\n")
    return Received(line, headers, body)


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
