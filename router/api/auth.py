"""Client keys -> Caller. Keys are compared by digest in constant time and kept nowhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from router.api.http import Exchange
from router.errors import RequestError
from router.types import Caller, Preferences


class Key(Protocol):
    """One client key: its public name, its secret, whom it is charged to, and which models it may use (all if none)."""

    @property
    def name(self) -> str: ...
    @property
    def secret(self) -> str: ...
    @property
    def team(self) -> str | None: ...
    @property
    def project(self) -> str | None: ...
    @property
    def tags(self) -> Mapping[str, str]: ...
    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def preferences(self) -> Preferences: ...


class Authenticator:
    """Knows the client keys. Without any, everybody is the anonymous caller (which app allows on loopback only)."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._callers = {
            _digest(key.secret.encode()): Caller(
                key.name, key.team, key.project, dict(key.tags), key.models, key.preferences
            )
            for key in keys
        }

    def caller(self, exchange: Exchange) -> Caller:
        """Who sent this request; RequestError 401 without a valid key. The body has not been read yet."""
        retries = _retries(exchange.headers.get(b"x-stainless-retry-count"))
        if not self._callers:
            return Caller(retry_count=retries)
        sent = _sent(exchange.headers)
        if not sent:
            raise _refused(
                "You didn't provide an API key. Send it in the Authorization header: 'Authorization: Bearer YOUR_KEY'.",
                None,
            )
        # The lookup is by a digest of the key, so its timing says nothing about any other key.
        found = self._callers.get(_digest(sent))
        if found is None:
            raise _refused("Incorrect API key provided.", "invalid_api_key")
        return replace(found, retry_count=retries) if retries else found


def _sent(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, key = headers.get(b"authorization", b"").strip().partition(b" ")
    if scheme.lower() == b"bearer" and key.strip():
        return key.strip()
    return headers.get(b"api-key", b"").strip()


def _digest(secret: bytes) -> bytes:
    return hashlib.blake2b(secret, digest_size=32).digest()  # as good as SHA-256 here, at half its cost


def _retries(sent: bytes | None) -> int:
    return int(sent) if sent is not None and len(sent) <= 4 and sent.isdigit() else 0


def _refused(message: str, code: str | None) -> RequestError:
    return RequestError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})
