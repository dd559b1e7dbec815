"""What is known about one target doing one operation, and how old that knowledge is.

Two levels. *Recent* evidence halves every two minutes; the *long run* moves with time, not with traffic, and is what
the recent evidence is held against and falls back to. Latency is log-normal and divided by the work asked for:

    ln T = m + a ln(megapixels) + b ln(images) + c(class) + noise

with m the target's present pace, a and b learnt per target, c learnt per work class (size, number, quality) as far as
that class has samples. A call still running is evidence too: it is already known to be at least that slow, and the
longer it lasts the likelier it is stuck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from router.routing.settings import Prior, RoutingSettings

LN2 = math.log(2.0)
Z95 = 1.6448536269514722  # standard normal quantile of 0.95
SQRT_HALF = math.sqrt(0.5)

DEFAULT_P50_S = 5.0  # of a target nobody knows anything about
DEFAULT_SIGMA = 0.6
DEFAULT_SUCCESS = 0.98
SIZE_EXPONENTS = (0.7, 0.42)  # of megapixels and of images, until learnt

# The normal distribution beyond z, tabulated every 1/16 from -2 to 6: hazard, information, survival.
_STEPS = 16
_LOW = -2.0


def _tail(z: float) -> tuple[float, float, float]:
    survival = 0.5 * math.erfc(z * SQRT_HALF)
    hazard = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi) / survival
    return hazard, hazard * (hazard - z), survival


_TAIL = [_tail(_LOW + (i + 0.5) / _STEPS) for i in range(8 * _STEPS)]
_LAST = len(_TAIL) - 1


@dataclass(slots=True)
class Flight:
    """A call that is running."""

    arm: Arm
    start: float
    load: float  # log-seconds that its work adds
    x: tuple[float, float]
    work: Work
    price: int
    model: str
    probe: bool = False
    first_byte: float | None = None


Work = tuple[int, int, str | None]  # work class: size bucket, images, quality


def work_class(images: int, megapixels: float, quality: str | None) -> Work:
    """Size in half octaves, number of images, quality."""
    return round(2.0 * math.log2(megapixels)) if megapixels > 0 else 0, images, quality


class Arm:
    """One target doing one operation."""

    __slots__ = (
        "_at",
        "_classes",
        "_cov",
        "_decay",
        "_fresh_until",
        "_jolt",
        "_settings",
        "_stepped",
        "_x_mean",
        "exponents",
        "fail_s",
        "failures",
        "flights",
        "m",
        "mu",
        "n",
        "p",
        "p_long",
        "recent_n",
        "recent_y",
        "seen",
        "sigma",
        "successes",
        "target",
        "var",
        "weight",
    )

    def __init__(self, target: str, prior: Prior | None, settings: RoutingSettings) -> None:
        p50 = prior.p50_s if prior and prior.p50_s else None
        sigma = DEFAULT_SIGMA
        if prior and prior.p50_s and prior.p95_s:
            sigma = max(0.05, math.log(prior.p95_s / prior.p50_s) / Z95)
        self.target = target
        self._settings = settings
        self._decay = LN2 / settings.half_life_s
        self.mu = math.log(p50 or DEFAULT_P50_S)  # long run: log-seconds of one picture of one megapixel
        self.var = sigma * sigma
        self.weight = 5.0 if p50 else 0.0  # samples behind mu; 0: nothing known, the peers stand in
        self.p_long = min(prior.success, 0.999) if prior and prior.success else DEFAULT_SUCCESS
        self.n = 0.0  # long-run outcomes
        self.seen: float | None = None  # when it was last heard of
        self._stepped = -math.inf  # when the long run last took a sample
        self._at = 0.0  # the recent sums are aged to here
        self.recent_n = 0.0
        self.recent_y = 0.0
        self.successes = 0.0
        self.failures = 0.0
        self.fail_s = 0.0  # sum of failures' seconds, aged as they are
        self._jolt = 0  # sign of the last sample if it was beyond belief
        self.exponents = list(SIZE_EXPONENTS)
        self._cov = [0.05, 0.0, 0.05]
        self._x_mean = [0.5, 0.5]
        self._classes: dict[Work, list[float]] = {}
        self.flights: dict[str, Flight] = {}
        self._fresh_until = -math.inf
        self.m = self.mu
        self.sigma = sigma
        self.p = self.p_long

    # -- reading

    def load(self, x: tuple[float, float], work: Work) -> float:
        """Log-seconds that this work adds to the pace."""
        offset = self._classes.get(work)
        e = self.exponents
        base = e[0] * x[0] + e[1] * x[1]
        return base if offset is None else base + offset[1] / (offset[0] + 10.0)

    def refresh(self, now: float) -> None:
        """Bring ``m`` (pace), ``p`` (success) and ``sigma`` up to ``now``; cheap when they are fresh."""
        if now < self._fresh_until:
            return
        self._age(now)
        s = self._settings
        strength = min(s.latency_strength, self.weight) if self.weight else 0.5
        total = strength + self.recent_n
        m = (strength * self.mu + self.recent_y) / total
        sigma = self.sigma
        stuck = 0.0
        if self.flights:
            hazards = information = 0.0
            q = max(0.002, 1.0 - self.p_long)
            scale = _STEPS / sigma
            log = math.log
            for flight in self.flights.values():
                age = now - flight.start
                if age <= 0.0:
                    continue
                i = int((log(age) - flight.load - m) * scale - _LOW * _STEPS)
                if i < 0:
                    continue
                hazard, info, survival = _TAIL[i if i < _LAST else _LAST]
                hazards += hazard
                information += info
                if hazard > 1.0:
                    stuck += q / (q + (1.0 - q) * survival)
            m += sigma * hazards / (total + information)
        self.m = m
        good = s.success_strength * self.p_long + self.successes
        self.p = max(0.02, good / (s.success_strength + self.successes + self.failures + stuck))
        self._fresh_until = now + min(0.25, 0.05 * math.exp(m))

    def mean_fail_s(self, mean_s: float) -> float:
        """Expected seconds of a failure: of the recent ones, else as long as a success."""
        return (2.0 * mean_s + self.fail_s) / (2.0 + self.failures)

    # -- learning

    def _age(self, now: float) -> None:
        dt = now - self._at
        if dt <= 0.0:
            return
        self._at = now
        keep = math.exp(-dt * self._decay)
        self.recent_n *= keep
        self.recent_y *= keep
        self.successes *= keep
        self.failures *= keep
        self.fail_s *= keep

    def _step(self, now: float) -> float:
        """Weight of a sample for the long run: after the first ten, one in full per ``memory_step_s`` at most."""
        step = 1.0 if self.n < 10.0 else min(1.0, (now - self._stepped) / self._settings.memory_step_s)
        self._stepped = now
        return max(step, 0.0)

    def on_success(self, latency_s: float, x: tuple[float, float], work: Work, now: float) -> float:
        """Learn from a success; returns its z against what was expected."""
        self._age(now)
        latency_s = max(latency_s, 1e-4)
        y = math.log(latency_s) - self.load(x, work)
        s = self._settings
        known = min(s.latency_strength, self.weight) if self.weight else 0.0
        total = known + self.recent_n
        expected = (known * self.mu + self.recent_y) / total if total > 0 else y
        error = y - expected
        z = error / self.sigma
        # One sample far off is an outlier, two in a row on the same side are news.
        bound = max(3.0 * self.sigma, 1.0)
        if abs(error) > bound:
            sign = 1 if error > 0 else -1
            if self._jolt != sign:
                y = expected + sign * bound
            self._jolt = sign
            error = y - expected
        else:
            self._jolt = 0
            if total >= 1.0:
                self._learn_size(error * total / (total + 1.0), x, work)
        self.recent_n += 1.0
        self.recent_y += y
        self.successes += 1.0
        step = self._step(now)
        self.weight = min(self.weight + step, s.memory)
        self.mu += (y - self.mu) * step / self.weight if self.weight > step else (y - self.mu)
        if total >= 1.0:
            share = step / (min(self.n, s.memory) + 6.0)
            self.var += (min(error * error, 9.0 * self.var) * total / (total + 1.0) - self.var) * share
            self.sigma = max(0.08, math.sqrt(self.var))
        self._outcome(1.0, step)
        self.seen = now
        self._fresh_until = -math.inf
        return z

    def on_failure(self, seconds: float, now: float, *, slower_than: Flight | None = None) -> None:
        """Learn from a failure; ``slower_than`` is the call that ran into a limit, evidence of slowness too."""
        self._age(now)
        if slower_than is not None and seconds > 0:
            z = (math.log(seconds) - slower_than.load - self.m) / self.sigma
            hazard = _tail(min(max(z, _LOW), 6.0))[0]
            self.recent_n += 1.0
            self.recent_y += self.m + self.sigma * max(hazard, z)
        self.failures += 1.0
        self.fail_s += max(seconds, 0.0)
        self._outcome(0.0, self._step(now))
        self.seen = now
        self._fresh_until = -math.inf

    def _outcome(self, value: float, step: float) -> None:
        self.n = min(self.n + step, self._settings.memory)
        self.p_long += (value - self.p_long) * step / (self.n + 10.0)

    def _learn_size(self, error: float, x: tuple[float, float], work: Work) -> None:
        """Kalman step for the two exponents, around the mean work so that pace and size law do not mix."""
        mean, cov, e = self._x_mean, self._cov, self.exponents
        dx, dy = x[0] - mean[0], x[1] - mean[1]
        mean[0] += dx * 0.02
        mean[1] += dy * 0.02
        a, b, c = cov
        gx, gy = a * dx + b * dy, b * dx + c * dy
        noise = self.var + gx * dx + gy * dy
        kx, ky = gx / noise, gy / noise
        e[0] = min(max(e[0] + kx * error, 0.0), 1.5)
        e[1] = min(max(e[1] + ky * error, 0.0), 1.5)
        cov[0] = a - kx * gx + 1e-6
        cov[1] = b - kx * gy
        cov[2] = c - ky * gy + 1e-6
        entry = self._classes.get(work)
        if entry is None:
            if len(self._classes) >= 64:
                return
            entry = self._classes[work] = [0.0, 0.0]
        keep = 1.0 - 1.0 / 200.0
        entry[0] = entry[0] * keep + 1.0
        entry[1] = entry[1] * keep + error

    def forget_failures(self, keep: float) -> None:
        """After a recovery: an outage says little about what comes next."""
        self.failures *= keep
        self.fail_s *= keep
        self._fresh_until = -math.inf

    def touch(self) -> None:
        """Something changed: the next refresh computes anew."""
        self._fresh_until = -math.inf


class Histogram:
    """Log-bucket counts: any quantile within 1 %, merging is addition. Values in seconds."""

    __slots__ = ("counts", "n", "total")
    ACCURACY = 0.01
    _SCALE = 1.0 / math.log((1.0 + ACCURACY) / (1.0 - ACCURACY))

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})
        self.n = sum(self.counts.values())

    def add(self, value: float, times: int = 1) -> None:
        bucket = math.ceil(math.log(max(value, 1e-6)) * self._SCALE)
        self.counts[bucket] = self.counts.get(bucket, 0) + times
        self.n += times

    def merge(self, other: Histogram) -> None:
        for bucket, times in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + times
        self.n += other.n

    def quantile(self, q: float) -> float | None:
        """Seconds, or None without samples. Nearest rank; the middle of its bucket."""
        if self.n == 0:
            return None
        rank = max(1, math.ceil(q * self.n))
        for bucket in sorted(self.counts):
            rank -= self.counts[bucket]
            if rank <= 0:
                return math.exp((bucket - 0.5) / self._SCALE)
        raise AssertionError("counts and n disagree")


class Window:
    """A histogram of the last hour: twelve slots of five minutes, the oldest dropped as time goes."""

    __slots__ = ("_slots",)
    SLOT_S = 300.0
    SLOTS = 12

    def __init__(self) -> None:
        self._slots: dict[int, Histogram] = {}

    def add(self, value: float, now: float) -> None:
        key = int(now // self.SLOT_S)
        slot = self._slots.get(key)
        if slot is None:
            self._drop(key)
            slot = self._slots[key] = Histogram()
        slot.add(value)

    def _drop(self, key: int) -> None:
        for old in [k for k in self._slots if k <= key - self.SLOTS]:
            del self._slots[old]

    def read(self, now: float) -> Histogram:
        self._drop(int(now // self.SLOT_S))
        merged = Histogram()
        for slot in self._slots.values():
            merged.merge(slot)
        return merged


def wilson(successes: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate; (0, 1) without samples."""
    if n <= 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
