"""How much a client key may ask for: requests and pictures a minute, and requests at once. The time is an argument.

A minute's worth may come at once and comes back evenly, so that in any time T no more than the limit times (1 min + T)
passes. Everything is counted in whole nanoseconds: a key that waits as long as it is told is let through.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from router.errors import RequestError

NANOS = 1_000_000_000
MINUTE = 60 * NANOS
BUSY_S = 1.0  # after which to ask again where all that is known is that others have to end first


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What a client key may ask for; None: as much as it likes."""

    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    in_flight: int | None = None  # requests at once

    @property
    def any(self) -> bool:
        return any(getattr(self, each.name) is not None for each in fields(self))


NO_LIMITS = RateLimits()


class Bucket:
    """So many a minute (GCRA). ``now`` is in seconds, ``parts`` how many such buckets stand for one limit together."""

    __slots__ = ("_full_at", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._full_at = 0  # when nothing will be missing from it, in nanoseconds times the limit: so all is whole

    def wait_s(self, count: int, now: float, parts: int = 1) -> float:
        """Seconds until ``count`` may be taken. More than it holds may be taken when it is full, and leave a debt."""
        missing = self._missing(now) + min(count * parts, self.limit) * MINUTE - self.limit * MINUTE
        return -(-max(0, missing) // self.limit) / NANOS

    def take(self, count: int, now: float, parts: int = 1) -> None:
        self._full_at = self._at(now) + self._missing(now) + count * parts * MINUTE

    def left(self, now: float, parts: int = 1) -> int:
        """How many may be taken now."""
        return max(0, (self.limit * MINUTE - self._missing(now)) // (MINUTE * parts))

    def full_s(self, now: float) -> float:
        """Seconds until nothing is missing."""
        return -(-self._missing(now) // self.limit) / NANOS

    def _at(self, now: float) -> int:
        return round(now * NANOS) * self.limit

    def _missing(self, now: float) -> int:
        return max(0, self._full_at - self._at(now))


class Limiter:
    """Holds one client key to its limits. ``parts``: how many routers share them; each lets its even part through."""

    def __init__(self, key: str, limits: RateLimits) -> None:
        self.key = key
        self._requests = Bucket(limits.requests_per_minute) if limits.requests_per_minute is not None else None
        self._images = Bucket(limits.images_per_minute) if limits.images_per_minute is not None else None
        self._at_once = limits.in_flight
        self.in_flight = 0

    def enter(self, now: float, parts: int = 1) -> Slot:
        """A request begins, and ends when its slot is released. RequestError 429 if there are too many; it then counts
        for nothing."""
        if self._at_once is not None and self.in_flight and (self.in_flight + 1) * parts > self._at_once:
            raise self._over(f"{self._at_once} requests at once", BUSY_S)
        if self._requests is not None:
            wait_s = self._requests.wait_s(1, now, parts)
            if wait_s:
                raise self._over(f"{self._requests.limit} requests per minute", wait_s)
            self._requests.take(1, now, parts)
        self.in_flight += 1
        return Slot(self)

    def images(self, count: int, now: float, parts: int = 1) -> None:
        """So many pictures are about to be made. RequestError 429 if they are too many a minute."""
        if self._images is None:
            return
        wait_s = self._images.wait_s(count, now, parts)
        if wait_s:
            raise self._over(f"{self._images.limit} images per minute", wait_s)
        self._images.take(count, now, parts)

    def headers(self, now: float, parts: int = 1) -> list[tuple[bytes, bytes]]:
        """The limit on requests as OpenAI's clients know it; nothing where there is none."""
        bucket = self._requests
        if bucket is None:
            return []
        return [
            (b"x-ratelimit-limit-requests", b"%d" % bucket.limit),
            (b"x-ratelimit-remaining-requests", b"%d" % bucket.left(now, parts)),
            (b"x-ratelimit-reset-requests", duration(bucket.full_s(now)).encode()),
        ]

    def _over(self, limit: str, wait_s: float) -> RequestError:
        return RequestError(
            429,
            f"Rate limit reached for the key '{self.key}': {limit}. Try again in {duration(wait_s)}.",
            code="rate_limit_exceeded",
            type="requests",
            retry=True,
            retry_after_s=wait_s,
        )


class Slot:
    """The place of one request among those at once."""

    __slots__ = ("_limiter",)

    def __init__(self, limiter: Limiter) -> None:
        self._limiter: Limiter | None = limiter

    def release(self) -> None:
        """Give it back; safe to do twice."""
        if self._limiter is not None:
            self._limiter.in_flight -= 1
            self._limiter = None


def duration(seconds: float) -> str:
    """Rounded up to the millisecond, as OpenAI writes durations: 120ms, 1s, 8.64s, 6m0s."""
    ms = -(-round(seconds * NANOS) // 1_000_000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
