"""Percentiles and intervals for people: log-bucket histograms over a sliding hour, and Wilson's interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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

    def remove(self, other: Histogram) -> None:
        """Take back what was merged."""
        for bucket, times in other.counts.items():
            left = self.counts[bucket] - times
            if left:
                self.counts[bucket] = left
            else:
                del self.counts[bucket]
        self.n -= other.n

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


Counts = tuple[float, list[int]]  # of one slot: in how many seconds it ends; bucket, count, bucket, count ...


class Window:
    """A histogram of the last hour: slots of five minutes, each dropped as a whole eleven slots after its end.

    What other windows tell keeps its own slots' ends, to ``TICK_S``: it is dropped when they drop it.
    """

    __slots__ = ("_key", "_new", "_slot", "_slots", "_sum")
    SLOT_S = 300.0
    SLOTS = 12
    TICK_S = 10.0

    def __init__(self) -> None:
        self._slots: dict[int, Histogram] = {}  # told, or heard of; by the tick of their end
        self._sum = Histogram()  # of these, for there are many where many routers share
        self._new: dict[int, Histogram] = {}  # added and not yet told; by the number of the slot
        self._key: int | None = None
        self._slot = Histogram()

    def add(self, bucket: int, now: float) -> None:
        key = int(now // self.SLOT_S)
        if key != self._key:
            self._drop(now)
            self._key, self._slot = key, self._new.setdefault(key, Histogram())
        self._slot.add(bucket)

    def read(self, now: float) -> Histogram:
        """Everything of the last hour in one histogram."""
        self._drop(now)
        merged = Histogram(self._sum.counts)
        for slot in self._new.values():
            merged.merge(slot)
        return merged

    def told(self, now: float) -> list[Counts]:
        """What was added since the last call, for ``hear``; without what was heard."""
        if not self._new:
            return []
        self._drop(now)
        told: list[Counts] = []
        for key, slot in self._new.items():
            ends = (key + 1) * self.SLOT_S
            told.append((round(ends - now, 3), [number for pair in slot.counts.items() for number in pair]))
            self._keep(ends, slot)
        self._new, self._key = {}, None
        return told

    def hear(self, told: Iterable[Sequence[Any]], now: float) -> None:
        """Add what another window told at ``now``."""
        for ends_s, counts in told:
            self._keep(now + ends_s, Histogram(dict(zip(counts[::2], counts[1::2], strict=True))))
        self._drop(now)

    def _keep(self, ends: float, slot: Histogram) -> None:
        self._sum.merge(slot)
        kept = self._slots.setdefault(round(ends / self.TICK_S), slot)
        if kept is not slot:
            kept.merge(slot)

    def _drop(self, now: float) -> None:
        oldest = now - (self.SLOTS - 1) * self.SLOT_S
        for old in [tick for tick in self._slots if tick * self.TICK_S <= oldest]:
            self._sum.remove(self._slots.pop(old))
        for old in [key for key in self._new if (key + 1) * self.SLOT_S <= oldest]:
            del self._new[old]


def wilson(successes: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate; (0, 1) without samples."""
    if n <= 0:
        return 0.0, 1.0
    # Aged counts become as small as numbers get: nothing is divided by their square.
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (1 - successes / n) + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
