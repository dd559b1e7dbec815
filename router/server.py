"""The router as a process: what may be started, sockets and signals, and on demand the sandbox beside it."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import structlog
import uvicorn
import uvloop
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router import sandbox as emulator
from router.app import StartError, build
from router.config import Settings, load
from router.heap import keep_freed
from router.logs import configure_logs

log = structlog.get_logger("pixelroute")

SANDBOX_MODELS = Path(emulator.__file__).with_name("models.yaml")
"""Models of the sandbox that behave in ways one wants to try an application on."""

_READ_BYTES = 256 * 1024  # at once


def serve_forever(
    paths: Iterable[Path], *, host: str, port: int, sandbox: bool, sandbox_speed: float, log_format: str
) -> None:
    """Serve until interrupted. ConfigError or StartError if that is impossible; nothing has been started then."""
    uvloop.run(_serve(tuple(paths), host, port, sandbox, sandbox_speed, log_format))


async def _serve(
    paths: tuple[Path, ...], host: str, port: int, sandbox: bool, sandbox_speed: float, log_format: str
) -> None:
    redact = configure_logs(log_format)
    async with AsyncExitStack() as stack:
        if sandbox:
            emulators = emulator.build(time_scale=sandbox_speed)
            sandbox_port, stop = await emulator.serve(emulators, "127.0.0.1", 0)
            stack.push_async_callback(stop)
            origin = f"http://127.0.0.1:{sandbox_port}"
            urls = {name: {key: origin + path for key, path in bases.items()} for name, bases in emulator.BASES.items()}
            settings = load((*paths, SANDBOX_MODELS), sandbox_urls=urls, sandbox_keys=emulator.KEYS)
            settings = hurried(settings, sandbox_speed)
            log.info("sandbox", url=origin, control=f"{origin}/_control")
        else:
            settings = load(paths)
        redact.add(_secrets(settings))
        _refuse(settings, host)
        app, runtime = build(settings)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=connections(),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            date_header=True,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(settings.limits.drain_s) + 5,
        )
        server = _Server(config)
        server.on_stop = runtime.drain
        server.on_start = lambda bound: log.info(
            "serving",
            url=f"http://{f'[{host}]' if ':' in host else host}:{bound}/v1",
            providers=sorted(settings.providers),
            models=len(settings.models),
            ledger=settings.ledger_url,
            sandbox=sandbox,
        )
        keep_freed()
        gc.collect()
        gc.freeze()  # what was loaded for good need not be looked through again and again
        gc.set_threshold(20_000, 20, 20)  # a request makes a thousand objects and no cycle
        await server.serve()
        if not server.started:
            raise StartError(f"nothing could be served on {host}:{port}; the log says why")


class Joined:
    """A connection that sends the head of an answer together with the first bytes of its body.

    uvicorn hands them over one after the other, and uvloop sends at once: two system calls and two packets, 6 us more
    of an answer's CPU. A head whose body takes longer goes at the end of the loop's turn.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.writelines((head, data))
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 with heads and bodies joined."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(cast(asyncio.Transport, Joined(transport)))

    def on_body(self, body: bytes) -> None:
        """What has come goes on as it is: uvicorn copies it twice more, into a buffer and out of it."""
        cycle: Any = self.cycle
        if not cycle.response_complete:
            cycle.body = cycle.body + body if cycle.body else body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()


class _Reading(asyncio.BufferedProtocol):
    """A connection read into memory that it shares with others: what comes is taken from there before more is read.

    Together with ``on_body`` above, a picture of 4 MB is copied once between socket and form, and not four times: a
    fifth of all the CPU of its edit (2026-11).
    """

    def __init__(self, memory: memoryview, **how: Any) -> None:
        self._memory = memory
        self._protocol = _Protocol(**how)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._protocol.connection_made(cast(asyncio.Transport, transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def eof_received(self) -> None:
        self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._memory

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(self._memory[:nbytes])  # type: ignore[arg-type]  # its parser takes any buffer


def connections() -> Any:
    """What uvicorn makes connections of in place of a protocol's class. Those of one event loop share their memory."""
    return partial(_Reading, memoryview(bytearray(_READ_BYTES)))


class _Server(uvicorn.Server):
    """Says where it listens; stops on SIGINT and SIGTERM by draining, then ends like a program that did its work."""

    on_start: Callable[[int], None]
    on_stop: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_start(self.servers[0].sockets[0].getsockname()[1])  # the port that was picked, where it is 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.force_exit = self.should_exit  # the second time: now
        self.should_exit = True
        self.on_stop()


def _refuse(settings: Settings, host: str) -> None:
    """What must not be started, with the way out."""
    if not settings.providers:
        missing = "; ".join(f"{name}: {why}" for name, why in settings.disabled.items())
        raise StartError(
            f"no provider has its key ({missing}). Put at least one key into the environment, or use --sandbox to try "
            "everything without a key."
        )
    if not settings.keys and not _is_loopback(host):
        raise StartError(
            f"listening on {host} lets others spend your money: set PIXELROUTE_API_KEY, or listen on 127.0.0.1."
        )


def _secrets(settings: Settings) -> list[str]:
    """Every secret this process holds, for the logs to leave out."""
    found = [provider.key for provider in settings.providers.values()] + [key.secret for key in settings.keys]
    if settings.webhooks is not None:
        found += settings.webhooks.secrets
    if (s3 := settings.media.s3) is not None:
        found += [s3.access_key, s3.secret_key]
    if settings.sharing is not None:
        parts = urlsplit(settings.sharing.url)
        found += [unquote(parts.password or ""), *parse_qs(parts.query).get("password", [])]
    return [secret for secret in (*found, settings.admin_key) if secret]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def hurried(settings: Settings, speed: float) -> Settings:
    """The settings for a world whose providers take ``speed`` times their usual time.

    Expectations shrink with it and the worth of a second grows, so that the choices are those of the real world.
    """
    if speed <= 0:
        return settings
    priors = {
        target: replace(prior, p50_s=prior.p50_s and prior.p50_s * speed, p95_s=prior.p95_s and prior.p95_s * speed)
        for target, prior in settings.priors.items()
    }
    presets = {
        name: replace(preset, value_of_time=preset.value_of_time / speed)
        for name, preset in settings.routing.presets.items()
    }
    return replace(settings, priors=priors, routing=replace(settings.routing, presets=presets))


def sandbox_forever(host: str, port: int, speed: float, say: Callable[[str], None]) -> None:
    """Run the emulators alone."""

    async def run() -> None:
        bound, stop = await emulator.serve(emulator.build(time_scale=speed), host, port)
        say(f"Sandbox on http://{host}:{bound}, control at /_control. Base URLs and keys:")
        for name, bases in emulator.BASES.items():
            for url_name, path in bases.items():
                say(f"  {name:12} {url_name:6} http://{host}:{bound}{path}   {emulator.KEYS[name]}")
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await ended.wait()
        await stop()

    uvloop.run(run())
