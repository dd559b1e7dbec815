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
CLASSES = 64  # work classes kept per law and per target

# The normal distribution beyond z, tabulated every 1/16 from -2 to 6: hazard, information, survival and
# its surprise.
_STEPS = 16
_LOW = -2.0


def _tail(z: float) -> tuple[float, float, float, float]:
    survival = 0.5 * math.erfc(z * SQRT_HALF)
    hazard = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi) / survival
    return hazard, hazard * (hazard - z), survival, -math.log(survival)


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


class SizeLaw:
    """How latency grows with work, learnt from all targets of one model: it is the same model everywhere.

    What the power law misses is learnt per work class. A law of its own for each target would make targets look
    different that are not, on the few samples that most have.
    """

    __slots__ = ("_classes", "_cov", "_mean", "exponents")

    def __init__(self) -> None:
        self.exponents = list(SIZE_EXPONENTS)
        self._cov = [0.05, 0.0, 0.05]
        self._mean = [0.3, 0.2]
        self._classes: dict[Work, list[float]] = {}

    def load(self, x: tuple[float, float], work: Work) -> float:
        e = self.exponents
        offset = self._classes.get(work)
        load = e[0] * x[0] + e[1] * x[1]
        return load if offset is None else load + offset[1] / (offset[0] + 10.0)

    def learn(self, error: float, var: float, x: tuple[float, float], work: Work) -> None:
        """Kalman step for the two exponents, around the mean work so that pace and size law do not mix."""
        mean, cov, e = self._mean, self._cov, self.exponents
        dx, dy = x[0] - mean[0], x[1] - mean[1]
        mean[0] += dx * 0.02
        mean[1] += dy * 0.02
        a, b, c = cov
        gx, gy = a * dx + b * dy, b * dx + c * dy
        noise = var + gx * dx + gy * dy
        kx, ky = gx / noise, gy / noise
        e[0] = min(max(e[0] + kx * error, 0.0), 1.5)
        e[1] = min(max(e[1] + ky * error, 0.0), 1.5)
        cov[0] = a - kx * gx + 1e-6
        cov[1] = b - kx * gy
        cov[2] = c - ky * gy + 1e-6
        entry = self._classes.get(work)
        if entry is None:
            if len(self._classes) >= CLASSES:
                return
            entry = self._classes[work] = [0.0, 0.0]
        _count(entry, error)


def _count(entry: list[float], error: float) -> None:
    keep = 1.0 - 1.0 / 200.0
    entry[0] = entry[0] * keep + 1.0
    entry[1] = entry[1] * keep + error


class Arm:
    """One target doing one operation."""

    __slots__ = (
        "_at",
        "_classes",
        "_decay",
        "_fresh_until",
        "_jolt",
        "_settings",
        "_stepped",
        "_answered_start",
        "law",
        "bills",
        "fail_s",
        "failures",
        "flights",
        "m",
        "m_quiet",
        "_up",
        "_down",
        "_run_n",
        "_run_y",
        "mu",
        "n",
        "p",
        "p_long",
        "recent_n",
        "recent_y",
        "seen",
        "sigma",
        "shift",
        "_well",
        "_well_at",
        "last_fail_s",
        "silence",
        "doubt",
        "successes",
        "target",
        "var",
        "weight",
    )

    def __init__(self, target: str, law: SizeLaw, prior: Prior | None, settings: RoutingSettings) -> None:
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
        self.bills = [0.0, 0.0]  # failures of which it is known whether they were billed, and those that were
        self.fail_s = 0.0  # sum of failures' seconds, aged as they are
        self.silence = 0.0  # surprise of the calls that run, started after the last one that was answered
        self.shift: float | None = None  # log-seconds by which the pace has left the long run's
        self._well = 0.0  # probability that the shift is over
        self._well_at = 0.0
        self.last_fail_s = 1.0
        self.doubt = 0.0  # probability that the estimate is off for lack of samples
        self._answered_start = -math.inf
        self._jolt = 0  # sign of the last sample if it was beyond belief
        self.law = law
        self._classes: dict[Work, list[float]] = {}
        self.flights: dict[str, Flight] = {}
        self._fresh_until = -math.inf
        self.m = self.m_quiet = self.mu
        self._up = self._run_n = self._run_y = self._down = 0.0
        self.sigma = sigma
        self.p = self.p_long

    # -- reading

    def load(self, x: tuple[float, float], work: Work) -> float:
        """Log-seconds that this work adds to the pace."""
        own = self._classes.get(work)
        load = self.law.load(x, work)
        return load if own is None else load + own[1] / (own[0] + self._settings.own_class)

    def refresh(self, now: float) -> None:
        """Bring ``m`` (pace), ``p`` (success) and ``sigma`` up to ``now``; cheap when they are fresh."""
        if now < self._fresh_until:
            return
        self._age(now)
        s = self._settings
        sigma = self.sigma
        stuck = silence = hazards = information = 0.0
        if self.flights:
            answered = self._answered_start
            mu = self.m_quiet
            q = max(0.002, 1.0 - self.p_long)
            scale = _STEPS / sigma
            log = math.log
            for flight in self.flights.values():
                age = now - flight.start
                if age <= 0.0:
                    continue
                i = int((log(age) - flight.load - mu) * scale - _LOW * _STEPS)
                if i < 0:
                    continue
                hazard, info, survival, surprise = _TAIL[i if i < _LAST else _LAST]
                if flight.start > answered:
                    silence += surprise
                hazards += hazard
                information += info
                if hazard > 1.0:
                    stuck += q / (q + (1.0 - q) * survival)
        if 1.5 * self._up > s.alarm and self._run_n < self.recent_n:
            self.recent_n, self.recent_y = self._run_n, self._run_y
            self._up = 0.0
        n = self.recent_n + information
        known = self.weight
        dev = self.recent_y - self.recent_n * self.mu + (self.m_quiet - self.mu) * information + sigma * hazards
        if known <= 0.0:
            m = self.mu + dev / (n + 0.5)
        else:
            # Is the pace the long run's, give or take, or has it changed? The data's odds decide how much each counts.
            same = dev / (min(s.same_strength, known) + n)
            if n > 0.05:
                var = sigma * sigma
                counts = n * known / (n + known)  # samples that tell the two means apart
                spread = s.change_var * counts / var  # prior variance of a change, in units of the mean's own
                z2 = dev * dev * counts / (n * n * var)
                odds = s.change_odds * math.exp(min(0.5 * z2 * spread / (1.0 + spread), 50.0)) / math.sqrt(1.0 + spread)
                changed = odds / (1.0 + odds)
                shift = dev / (min(s.latency_strength, known) + n)
                if changed > 0.5:
                    if self.shift is None:
                        self._well, self._well_at = 0.05, now
                    self.shift = shift
                same += changed * (shift - same)
            if self.shift is not None and abs(self.shift) > abs(same):
                same = self.shift  # until a sample says otherwise: silence is no evidence of recovery
            m = self.mu + same
        if not information:
            self.m_quiet = m
        self.m = m
        self.silence = silence
        good = s.success_strength * self.p_long + self.successes
        self.p = max(0.02, good / (s.success_strength + self.successes + self.failures + stuck))
        self._fresh_until = now + min(0.25, 0.05 * math.exp(m))

    def mean_fail_s(self, mean_s: float) -> float:
        """Expected seconds of a failure: of the recent ones, else as long as a success."""
        return (2.0 * mean_s + self.fail_s) / (2.0 + self.failures)

    # -- learning

    def adopt(self, m: float) -> None:
        """Nothing is known of this target: begin with what its peers do, as one sample."""
        self.mu, self.weight = m, 1.0

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

    def on_success(self, latency_s: float, x: tuple[float, float], work: Work, now: float, start: float) -> float:
        """Learn from a success; returns its z against what was expected."""
        self._age(now)
        latency_s = max(latency_s, 1e-4)
        y = math.log(latency_s) - self.load(x, work)
        s = self._settings
        total = min(s.same_strength, self.weight) + self.recent_n
        expected = self.m_quiet if total > 0 else y
        error = y - expected
        z = error / self.sigma
        self.doubt = 1.0 if z < s.surprise else 0.0
        if start > self._answered_start:
            self._answered_start = start
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
        if self.shift is not None:
            # Is it itself again? The time that has passed makes it likelier, the samples decide.
            stays = math.exp(-max(now - self._well_at, 0.0) / s.recover_every_s)
            self._well_at = now
            well = 1.0 - (1.0 - self._well) * stays
            says = self.shift * (0.5 * self.shift - (y - self.mu)) / self.var
            well = well / (well + (1.0 - well) * math.exp(min(max(-says, -50.0), 50.0)))
            self._well = max(well, 0.01)
            if well > 0.5:
                self.shift = None
                self.recent_n = self.recent_y = 0.0
            elif well > 0.1:
                self.doubt = 1.0
        self.recent_n += 1.0
        self.recent_y += y
        e = (y - expected) / self.sigma - 0.75
        if self._up + e > 0:
            self._up += e
            self._run_n += 1.0
            self._run_y += y
        else:
            self._up = self._run_n = self._run_y = 0.0
        self.successes += 1.0
        step = self._step(now)
        if self.shift is not None:
            step *= 0.1  # what may pass does not become the long run soon
        self.weight = min(self.weight + step, s.memory)
        self.mu += (y - self.mu) * step / self.weight
        if total >= 1.0:
            share = step / (min(self.n, s.memory) + 6.0)
            self.var += (min(error * error, 9.0 * self.var) * total / (total + 1.0) - self.var) * share
            self.sigma = max(0.08, math.sqrt(self.var))
        self._outcome(1.0, step)
        self.seen = now
        self._fresh_until = -math.inf
        return z

    def on_failure(
        self,
        seconds: float,
        now: float,
        *,
        limited: Flight | None = None,
        billed: bool | None = None,
        probe: bool = False,
    ) -> None:
        """Learn from a failure. ``limited`` is a call that ran into a limit of ours.

        Such a call is a failure as far as it was stuck, and a slow success cut short as far as its work explains it.
        """
        self._age(now)
        stuck = 1.0
        if limited is not None and seconds > 0:
            z = (math.log(seconds) - limited.load - self.m) / self.sigma
            hazard, _, survival, _ = _tail(min(max(z, _LOW), 6.0))
            q = max(0.002, 1.0 - self.p_long)
            stuck = q / (q + (1.0 - q) * survival)
            self.recent_n += 1.0 - stuck
            self.recent_y += (1.0 - stuck) * (self.m + self.sigma * max(hazard, z))
        if stuck < 0.5:
            self._fresh_until = -math.inf
            return
        self.failures += stuck
        self.last_fail_s = seconds
        self.fail_s += max(seconds, 0.0)
        if billed is not None:
            self.bills[0] += 1.0
            self.bills[1] += billed
        if not probe:
            self._outcome(0.0, self._step(now))
        self.seen = now
        self._fresh_until = -math.inf

    def _outcome(self, value: float, step: float) -> None:
        self.n = min(self.n + step, self._settings.memory)
        self.p_long += (value - self.p_long) * step / (self.n + 10.0)

    def _learn_size(self, error: float, x: tuple[float, float], work: Work) -> None:
        self.law.learn(error, self.var, x, work)
        entry = self._classes.get(work)
        if entry is None:
            if len(self._classes) >= CLASSES:
                return
            entry = self._classes[work] = [0.0, 0.0]
        _count(entry, error)

    def forget(self, keep: float) -> None:
        """After a recovery: an outage says little about what comes next."""
        self.recent_n *= keep
        self.recent_y *= keep
        self.failures *= keep
        self.fail_s *= keep
        self.shift = None
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
