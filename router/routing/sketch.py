"""Percentiles and intervals for people: log-bucket histograms over a sliding hour, and Wilson's interval."""

from __future__ import annotations

import math
from collections.abc import Mapping

P95_SAMPLES = 59  # fewer contain the true p95 with less than 95 % probability: 1 - 0.95^59


class Histogram:
    """Log-bucket counts of seconds: any quantile within 1 % of the value, and merging is the addition of counts."""

    __slots__ = ("counts", "n")
    ACCURACY = 0.01
    _SCALE = 1.0 / math.log((1.0 + ACCURACY) / (1.0 - ACCURACY))

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})
        self.n = sum(self.counts.values())

    @classmethod
    def bucket(cls, seconds: float) -> int:
        return math.ceil(math.log(max(seconds, 1e-6)) * cls._SCALE)

    def add(self, bucket: int) -> None:
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.n += 1

    def merge(self, other: Histogram) -> None:
        for bucket, times in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + times
        self.n += other.n

    def quantile(self, q: float) -> float | None:
        """Seconds by nearest rank, at the middle of its bucket; None without samples."""
        if self.n == 0:
            return None
        rank = min(max(1, math.ceil(q * self.n)), self.n)
        for bucket in sorted(self.counts):
            rank -= self.counts[bucket]
            if rank <= 0:
                return 2.0 * math.exp(bucket / self._SCALE) / (math.exp(1.0 / self._SCALE) + 1.0)
        raise AssertionError("counts and n disagree")


class Window:
    """A histogram of the last hour: twelve slots of five minutes, the oldest dropped as time goes on."""

    __slots__ = ("_key", "_slot", "_slots")
    SLOT_S = 300.0
    SLOTS = 12

    def __init__(self) -> None:
        self._slots: dict[int, Histogram] = {}
        self._key: int | None = None
        self._slot = Histogram()

    def add(self, bucket: int, now: float) -> None:
        key = int(now // self.SLOT_S)
        if key != self._key:
            self._drop(key)
            self._key, self._slot = key, self._slots.setdefault(key, Histogram())
        self._slot.add(bucket)

    def read(self, now: float) -> Histogram:
        """Everything of the last hour in one histogram."""
        self._drop(int(now // self.SLOT_S))
        merged = Histogram()
        for slot in self._slots.values():
            merged.merge(slot)
        return merged

    def _drop(self, key: int) -> None:
        for old in [k for k in self._slots if k <= key - self.SLOTS]:
            del self._slots[old]


def wilson(successes: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate; (0, 1) without samples."""
    if n <= 0:
        return 0.0, 1.0
    # Aged counts become as small as numbers get: nothing is divided by their square.
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (1 - successes / n) + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
