"""Percentiles and intervals for people: log-bucket histograms over a sliding hour, and Wilson's interval."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
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
        return math.ceil(math.log(seconds if seconds > 1e-6 else 1e-6) * cls._SCALE)

    def add(self, bucket: int) -> None:
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.n += 1

    def merge(self, other: Histogram) -> None:
        counts = self.counts
        for bucket, times in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + times
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

    def quantiles(self, *shares: float) -> list[float | None]:
        """Seconds by nearest rank, at the middle of their buckets; None without samples."""
        if self.n == 0:
            return [None] * len(shares)
        buckets = sorted(self.counts)
        up_to = list(accumulate(map(self.counts.__getitem__, buckets)))
        ranks = (min(max(1, math.ceil(share * self.n)), self.n) for share in shares)
        return [self._middle(buckets[bisect_left(up_to, rank)]) for rank in ranks]

    @classmethod
    def _middle(cls, bucket: int) -> float:
        return 2.0 * math.exp(bucket / cls._SCALE) / (math.exp(1.0 / cls._SCALE) + 1.0)


Counts = tuple[float, list[int]]  # of one slot: in how many seconds it ends; bucket, count, bucket, count ...


class Window:
    """A histogram of the last hour: slots of five minutes, each dropped as a whole eleven slots after its end.

    What other windows tell keeps its own slots' ends, to ``TICK_S``: it is dropped when they drop it.
    """

    __slots__ = ("_due", "_key", "_new", "_slot", "_slots", "_sum")
    SLOT_S = 300.0
    SLOTS = 12
    TICK_S = 10.0
    KEPT_S = (SLOTS - 1) * SLOT_S

    def __init__(self) -> None:
        self._slots: dict[int, Histogram] = {}  # told, or heard of; by the tick of their end
        self._new: dict[int, Histogram] = {}  # added and not yet told; by the number of the slot
        self._key: int | None = None  # of the slot that is being added to
        self._slot = Histogram()
        # Of all the others: a window is read as a whole, and there are many slots where many routers share.
        self._sum = Histogram()
        self._due = math.inf  # when the next slot is dropped

    def add(self, bucket: int, now: float) -> None:
        key = int(now // self.SLOT_S)
        if key != self._key:
            self._begin(key, now)
        self._slot.add(bucket)

    def read(self, now: float) -> Histogram:
        """Everything of the last hour in one histogram, which may be the window's own: to be read, at once."""
        self._drop(now)
        if self._key is None:
            return self._sum
        merged = Histogram(self._sum.counts)
        merged.merge(self._slot)
        return merged

    def told(self, now: float) -> list[Counts]:
        """What was added since the last call, for ``hear``; without what was heard."""
        if not self._new:
            return []
        self._drop(now)
        self._close()
        told: list[Counts] = []
        for key, slot in self._new.items():
            ends = (key + 1) * self.SLOT_S
            told.append((round(ends - now, 3), [number for pair in slot.counts.items() for number in pair]))
            self._keep(ends, slot)
        self._new = {}
        return told

    def hear(self, told: Iterable[Sequence[Any]], now: float) -> None:
        """Add what another window told at ``now``."""
        for ends_s, counts in told:
            slot = Histogram(dict(zip(counts[::2], counts[1::2], strict=True)))
            self._sum.merge(slot)
            self._keep(now + ends_s, slot)
        self._drop(now)

    def _begin(self, key: int, now: float) -> None:
        """What is added from now on belongs to this slot."""
        self._drop(now)
        self._close()
        slot = self._new.get(key)
        if slot is None:
            slot = self._new[key] = Histogram()
            self._due = min(self._due, (key + 1) * self.SLOT_S + self.KEPT_S)
        else:
            self._sum.remove(slot)
        self._key, self._slot = key, slot

    def _close(self) -> None:
        if self._key is not None:
            self._sum.merge(self._slot)
            self._key = None

    def _keep(self, ends: float, slot: Histogram) -> None:
        tick = round(ends / self.TICK_S)
        kept = self._slots.setdefault(tick, slot)
        if kept is not slot:
            kept.merge(slot)
        self._due = min(self._due, tick * self.TICK_S + self.KEPT_S)

    def _drop(self, now: float) -> None:
        if now < self._due:
            return
        oldest = now - self.KEPT_S
        for tick in [tick for tick in self._slots if tick * self.TICK_S <= oldest]:
            self._sum.remove(self._slots.pop(tick))
        for key in [key for key in self._new if (key + 1) * self.SLOT_S <= oldest]:
            if key == self._key:
                self._close()
            self._sum.remove(self._new.pop(key))
        ends = [tick * self.TICK_S for tick in self._slots] + [(key + 1) * self.SLOT_S for key in self._new]
        self._due = min(ends, default=math.inf) + self.KEPT_S


def wilson(successes: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate; (0, 1) without samples."""
    if n <= 0:
        return 0.0, 1.0
    # Aged counts become as small as numbers get: nothing is divided by their square.
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (1 - successes / n) + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
