"""Calling a client back when its request has ended, signed as Standard Webhooks describes.

``webhook-signature`` is ``v1,`` and the base64 HMAC-SHA256 of ``id.timestamp.body`` with the installation's secret.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

log = logging.getLogger("pixelroute.api")

Post = Callable[[str, bytes, Mapping[str, str]], Awaitable[int]]
"""POST a body with headers to a public https address, following no redirect; its status, or an OSError."""

DELAYS_S = (5.0, 15.0, 45.0)
"""Pauses before the repetitions of a call that was not answered with 2xx."""


def secret_bytes(secret: str) -> bytes:
    """The signing key of a ``whsec_`` secret; ValueError if it is none."""
    prefix, _, text = secret.partition("_")
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if prefix != "whsec" or len(key) < 16:
        raise ValueError("a webhook secret is whsec_ and the base64 of at least 16 bytes")
    return key


class Webhooks:
    """Delivers events. ``key`` is the secret's bytes."""

    def __init__(self, post: Post, key: bytes, *, delays_s: Sequence[float] = DELAYS_S) -> None:
        self._post = post
        self._key = key
        self._delays_s = delays_s
        self._running: set[asyncio.Task[None]] = set()

    def send(self, url: str, message_id: str, body: bytes) -> None:
        """Deliver in the background, with repetitions."""
        task = asyncio.create_task(self._deliver(url, message_id, body))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def headers(self, message_id: str, body: bytes, timestamp: int) -> dict[str, str]:
        """The headers that let a receiver check who sent this and when."""
        content = f"{message_id}.{timestamp}.".encode() + body
        signature = base64.b64encode(hmac.digest(self._key, content, hashlib.sha256)).decode()
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": f"v1,{signature}",
        }

    async def _deliver(self, url: str, message_id: str, body: bytes) -> None:
        for delay_s in (*self._delays_s, None):
            try:
                status = await self._post(url, body, self.headers(message_id, body, int(time.time())))
            except (OSError, ValueError, TimeoutError) as error:
                outcome = type(error).__name__
            else:
                if 200 <= status < 300:
                    return
                outcome = str(status)
                if status == 410:  # the receiver is gone for good
                    break
            if delay_s is not None:
                await asyncio.sleep(delay_s)
        log.warning("webhook not delivered", extra={"message_id": message_id, "outcome": outcome})
