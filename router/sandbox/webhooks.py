"""Delivery of a provider's webhooks: JSON by POST, a few tries, twice when asked to."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Mapping
from typing import Any

TRIES = 3
TIMEOUT_S = 15


async def deliver(url: str, message: Any, *, times: int = 1, headers: Mapping[str, str] | None = None) -> None:
    """POST ``message`` to ``url``, ``times`` times over; each delivery is repeated until it is answered with 2xx."""
    if not url.startswith(("http://", "https://")):
        return
    body = json.dumps(message).encode()
    for _ in range(times):
        for attempt in range(TRIES):
            if await asyncio.to_thread(_post, url, body, {"content-type": "application/json", **(headers or {})}):
                break
            await asyncio.sleep(0.1 * 2**attempt)


def _post(url: str, body: bytes, headers: Mapping[str, str]) -> bool:
    request = urllib.request.Request(url, body, dict(headers), method="POST")  # noqa: S310 - scheme checked above
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            return bool(200 <= response.status < 300)
    except OSError:  # HTTPError included
        return False
