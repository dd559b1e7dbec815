"""Calling a client back when its request has ended, signed as Standard Webhooks describes.

``webhook-signature`` is ``v1,`` and the base64 HMAC-SHA256 of ``id.timestamp.body`` with the installation's secret; of
several secrets, with which receivers change over in their own time, one signature after the other. A call that is not
answered with 2xx is repeated; how often it has been tried is noted, so that a restart goes on there. A receiver may get
an event twice, if the router dies between its answer and our note: ``webhook-id`` tells.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from router.api.fields import wrong_value

log = logging.getLogger("pixelroute.api")

Post = Callable[[str, bytes, Mapping[str, str]], Awaitable[int]]
"""POST a body with headers, following no redirect, to addresses that may be called only; its status, or an OSError."""

DELAYS_S = (5.0, 15.0, 45.0, 300.0, 1800.0, 7200.0)
"""Pauses before the repetitions of a call that was not answered with 2xx."""


@dataclass(slots=True)
class Event:
    """What somebody is to be told. ``tries``: how often that failed; ``due`` and ``since``, Unix seconds: when the next
    try is, and when there was something to tell.
    """

    url: str
    message_id: str
    body: bytes
    tries: int = 0
    due: float = 0.0
    since: float = field(default_factory=time.time)


Note = Callable[[Event | None], Coroutine[Any, Any, None]]
"""Told after a try that failed; with None when there is nothing left to do. May raise OSError."""


class Webhooks:
    """Delivers events. ``keys`` are the secrets' bytes; ``accepts`` says which IP addresses may be called, None: any.

    ``on_outcome`` is told of each call: delivered, failed (it is repeated) or given_up.
    """

    def __init__(
        self,
        post: Post,
        keys: Sequence[bytes],
        *,
        accepts: Callable[[str], bool] | None = None,
        delays_s: Sequence[float] = DELAYS_S,
        on_outcome: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._post = post
        self._keys = keys
        self._accepts = accepts
        self._delays_s = delays_s
        self._on_outcome = on_outcome
        self._waiting: dict[str, Event] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._closing = asyncio.Event()

    def check(self, url: str) -> None:
        """RequestError for what can be seen at once to be no address that may be called; names are seen when called."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            host = ""
        if not host or parts.username is not None:
            raise wrong_value("webhook_url", "'webhook_url' is not a URL that can be called.")
        if self._accepts is None:
            return
        if parts.scheme != "https":
            raise wrong_value("webhook_url", "'webhook_url' must be an https URL.")
        with suppress(ValueError):
            if not self._accepts(str(ipaddress.ip_address(host))):
                raise wrong_value("webhook_url", "'webhook_url' must be on the public internet.") from None

    def send(self, event: Event, note: Note) -> None:
        """Deliver in the background, with repetitions."""
        task = asyncio.create_task(self._deliver(event, note))
        self._running[event.message_id] = task
        self._waiting[event.message_id] = event
        task.add_done_callback(lambda _: self._over(event.message_id))

    def _over(self, message_id: str) -> None:
        self._running.pop(message_id, None)
        self._waiting.pop(message_id, None)

    @property
    def pending(self) -> int:
        """Events that have not reached their receivers yet."""
        return len(self._waiting)

    def oldest_s(self, now: float) -> float:
        """How long the oldest of them has waited at ``now`` (Unix seconds); 0.0 if there is none."""
        return max(0.0, now - min((event.since for event in self._waiting.values()), default=now))

    async def cancel(self, message_id: str) -> None:
        """Tell nobody any more; nothing is noted of it after this."""
        if (task := self._running.get(message_id)) is not None:
            task.cancel()
            await asyncio.wait([task])

    async def close(self, grace_s: float = 5.0) -> None:
        """Let running calls end; what is to be repeated is left to the next process."""
        self._closing.set()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=grace_s)
        for task in list(self._running.values()):
            task.cancel()

    def headers(self, message_id: str, body: bytes, timestamp: int) -> dict[str, str]:
        """The headers that let a receiver check who sent this and when."""
        content = f"{message_id}.{timestamp}.".encode() + body
        digests = [hmac.digest(key, content, hashlib.sha256) for key in self._keys]
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
        }

    async def _deliver(self, event: Event, note: Note) -> None:
        try:
            while await self._wait(event.due):
                outcome = await self._try(event)
                if outcome is None:
                    self._on_outcome("delivered")
                    break
                if event.tries >= len(self._delays_s) or outcome == "410":  # the receiver is gone for good
                    self._on_outcome("given_up")
                    log.warning("webhook %s given up: %s", event.message_id, outcome)
                    break
                self._on_outcome("failed")
                event.due = time.time() + self._delays_s[event.tries]
                event.tries += 1
                log.info("webhook %s failed %d times: %s", event.message_id, event.tries, outcome)
                await _unbroken(note(event))
            else:
                return  # the next process goes on
            await _unbroken(note(None))
        except OSError as problem:
            log.error("progress of webhook %s not kept", event.message_id, exc_info=problem)

    async def _wait(self, due: float) -> bool:
        """Until the moment has come; False if the router stops before."""
        if self._closing.is_set():
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due - time.time())):
                await self._closing.wait()
                return False
        return True

    async def _try(self, event: Event) -> str | None:
        """Why the receiver has not taken it; None if it has."""
        try:
            headers = self.headers(event.message_id, event.body, int(time.time()))
            status = await self._post(event.url, event.body, headers)
        except (OSError, ValueError) as error:
            return type(error).__name__
        return None if 200 <= status < 300 else str(status)


async def _unbroken(work: Coroutine[Any, Any, None]) -> None:
    """Who cancels this waits for the end of the work: a write that has begun cannot be called back."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
