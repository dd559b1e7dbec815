"""What is known about one target doing one operation, and how old that knowledge is.

Two levels of evidence. The *long run* moves with time, not with traffic: a target that is slow for half an hour at a
thousand requests does not make that its normal pace. *Recent* samples halve every two minutes. How much the recent
ones may move the estimate is decided by the odds that the target has changed at all; where it has, that is held on to
until a sample says otherwise, because silence is no evidence of recovery.

Latency is log-normal, divided by the work asked for (``SizeLaw``). A call still running is evidence as well: it is
already known to be at least that slow, and the longer it lasts the likelier it is stuck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from router.routing.breaker import Breaker
from router.routing.hour import Hour
from router.routing.settings import DEFAULT_P50_S, Prior, RoutingSettings
from router.routing.work import SizeLaw, Work

LN2 = math.log(2.0)
SUMS = 9  # numbers that replicas tell each other of an arm
Z95 = 1.6448536269514722  # standard normal quantile of 0.95
SQRT_HALF = math.sqrt(0.5)

DEFAULT_SIGMA = 0.6
DEFAULT_SUCCESS = 0.98
LEAST_SIGMA = 0.08
SIGMA_SAMPLES = 5.0  # what the spread counts as, before there are any
STALLS, STALL_SAMPLES = 0.001, 100.0  # share of calls that hang, until learnt, and how firmly that is believed
FRESH_S, FRESH = 0.5, 0.1  # estimates are good for so many seconds, and for this share of a call
HASTE_S = 2e-4  # ... and after an answer for this long per running call: each is looked at anew, which takes time
MATERIAL = 0.3  # log-seconds: a smaller change is followed, but not held on to
PLENTY = 3.0  # recent samples that need no help from what was held on to
DRIFT = 1.5  # the change, in standard deviations, that runs of odd samples are summed up for
NO_RUN = (0.0, 0.0, 0.0, 0.0, 0.0)
STEADY = 10.0  # long-run samples before a change can be told from learning

# The normal distribution beyond z, tabulated every 1/16 from -2 to 6: hazard, information and survival of a call that
# has lasted so long, and the surprise (-ln survival) of that.
_STEPS = 16
_LOW = -2.0


def _tail(z: float) -> tuple[float, float, float, float]:
    survival = 0.5 * math.erfc(z * SQRT_HALF)
    hazard = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi) / survival
    return hazard, hazard * (hazard - z), survival, -math.log(survival)


_TAIL = [_tail(_LOW + (i + 0.5) / _STEPS) for i in range(8 * _STEPS)]
_LAST = len(_TAIL) - 1


class Pace:
    """How fast a target is, in log-seconds for one picture of one megapixel."""

    __slots__ = (
        "_faster",
        "_jolt",
        "_settings",
        "_slower",
        "_well",
        "_well_at",
        "doubt",
        "m",
        "mean_s",
        "mu",
        "n",
        "out",
        "quiet",
        "sd",
        "shift",
        "sigma",
        "var",
        "weight",
        "y",
    )

    def __init__(self, prior: Prior | None, settings: RoutingSettings) -> None:
        p50 = prior.p50_s if prior is not None else None
        p95 = prior.p95_s if prior is not None else None
        if p95 and not p50:
            p50, p95 = p95 * math.exp(-Z95 * DEFAULT_SIGMA), None
        self._settings = settings
        self.mu = math.log(p50 or DEFAULT_P50_S)  # the long run
        self.sigma = max(LEAST_SIGMA, math.log(p95 / p50) / Z95) if p50 and p95 else DEFAULT_SIGMA
        self.var = self.sigma * self.sigma
        self.weight = prior.samples if prior is not None and p50 else 0.0  # samples behind mu
        self.sd = self.sigma / math.sqrt(self.weight + 1.0)  # standard deviation of mu
        self.n = 0.0  # recent samples, and their sum
        self.y = 0.0
        self.shift: float | None = None  # by how much the pace has left the long run, where it has
        self.doubt = 0.0  # probability that it has become faster for good
        self._well = 0.0  # probability that the shift is over
        self._well_at = 0.0
        self._jolt = 0  # sign of the last sample, if that was beyond belief
        # Runs of samples that speak for a change: its log-odds, the samples' number and sum, their weight in mu, and
        # that times their values.
        self._slower = list(NO_RUN)
        self._faster = list(NO_RUN)
        self.out = [0.0] * 4  # learnt and not yet told to other replicas: n, y, weight in mu, that times y
        self.m = self.mu  # the estimate
        self.mean_s = math.exp(self.m + 0.5 * self.var)  # of a success, by that estimate
        self.quiet = self.mu  # the estimate without the calls that are running

    def suppose(self, m: float) -> None:
        """Nothing is known of this target: reckon with what its peers do."""
        self.m = m
        self.mean_s = math.exp(m + 0.5 * self.var)

    def adopt(self, m: float) -> None:
        """Nothing is known of this target, but it is being used: begin with what its peers do, as one sample."""
        self.mu = self.m = self.quiet = m
        self.weight = 1.0
        self.sd = self.sigma * SQRT_HALF

    def estimate(self, hazards: float, information: float, now: float) -> None:
        """Set ``m``, given the sums over the running calls of hazard and information (both around ``quiet``)."""
        s = self._settings
        n = self.n + information
        dev = self.y - self.n * self.mu + (self.quiet - self.mu) * information + self.sigma * hazards
        known = self.weight
        off = dev / (min(s.same_strength, known) + n + 1e-9)
        if n > 0.05 and known > 0.0:
            # Is it the long run's pace, give or take, or has it changed? The odds decide how much each counts.
            counts = n * known / (n + known)  # samples that tell the two means apart
            spread = s.change_size**2 * counts / self.var
            z2 = dev * dev * counts / (n * n * self.var)
            odds = s.change_odds * math.exp(min(0.5 * z2 * spread / (1.0 + spread), 50.0)) / math.sqrt(1.0 + spread)
            changed = odds / (1.0 + odds)
            shift = dev / (min(s.changed_strength, known) + n)
            if changed > 0.5 and abs(shift) > MATERIAL:
                if self.shift is None:
                    shift += self._latch(self._slower if shift > 0.0 else self._faster, now)
                self.shift = shift
            elif changed < 0.2 and self.n > PLENTY:
                self.shift = None
            off += changed * (shift - off)
        if self.shift is not None and abs(self.shift) > abs(off):
            off = self.shift
        self.m = self.mu + off
        self.mean_s = math.exp(self.m + 0.5 * self.sigma * self.sigma)
        if information == 0.0:
            self.quiet = self.m

    def learn(self, y: float, step: float, unseen_s: float, now: float) -> float | None:
        """Learn one sample, of weight ``step`` in the long run; the error if that is fit to teach the size law."""
        s = self._settings
        if self.weight == 0.0:
            self.adopt(y)
        error = y - self.quiet
        if self.weight >= STEADY:
            self._suspect(error / self.sigma, unseen_s)
        # One sample far off is an outlier; two in a row on the same side are news.
        bound = max(3.0 * self.sigma, 1.0)
        sign = (error > bound) - (error < -bound)
        if sign and self._jolt != sign:
            error = sign * bound
            y = self.quiet + error
        self._jolt = sign
        if self.shift is not None:
            self._recover(y, now)
        self.n += 1.0
        self.y += y
        if self.shift is not None:
            step *= 0.1  # what may pass does not become the long run soon
        z = (y - self.mu) / self.sigma * math.sqrt(self.weight / (self.weight + 1.0))
        self.weight = min(self.weight + step, s.memory)
        self.mu += (y - self.mu) * step / self.weight
        for i, amount in enumerate((1.0, y, step, step * y)):
            self.out[i] += amount
        believed = min(s.same_strength, self.weight) + self.n
        fair = believed / (believed + 1.0)  # the error's variance holds the estimate's own
        self.var += (min(error * error, 9.0 * self.var) * fair - self.var) * step / (self.weight + SIGMA_SAMPLES)
        self.sigma = max(LEAST_SIGMA, math.sqrt(self.var))
        self.sd = self.sigma / math.sqrt(self.weight + 1.0)
        if self.weight >= STEADY and self.shift is None:
            self._drift(z, y, step, now)
        return None if sign else error * fair

    def cut_short(self, hazard: float, information: float, weight: float) -> None:
        """Learn from a call that was given up: it would have been slower still."""
        self.n += weight * information
        self.y += weight * (information * self.m + self.sigma * hazard)

    def forget(self, keep: float) -> None:
        """Something is over: of the recent samples this share still counts."""
        self.n *= keep
        self.y *= keep
        self.shift = None

    def told_shift(self, shift: float | None, now: float) -> None:
        """Another replica has newer evidence of whether the pace has left the long run."""
        if shift is not None and self.shift is None:
            self._well, self._well_at = 0.05, now
        self.shift = shift

    def _suspect(self, z: float, unseen_s: float) -> None:
        """Update ``doubt``: it grows while the target is not heard of, and with a fast answer."""
        s = self._settings
        prior = min(self.doubt + (1.0 - self.doubt) * unseen_s / s.change_every_s, 0.9)
        size = s.change_size / self.sigma
        says = size * (z + 0.5 * size)
        self.doubt = prior / (prior + (1.0 - prior) * math.exp(min(max(says, -50.0), 50.0)))

    def _drift(self, z: float, y: float, step: float, now: float) -> None:
        """Sum up what speaks for a change in either direction, however slowly the samples come (CUSUM)."""
        for run, sign in ((self._slower, 1.0), (self._faster, -1.0)):
            gain = DRIFT * (sign * z - 0.5 * DRIFT)
            if run[0] + gain <= 0.0:
                run[:] = NO_RUN
                continue
            run[0] += gain
            run[1] += 1.0
            run[2] += y
            run[3] += step
            run[4] += step * y
            if run[0] > self._settings.alarm:
                n, total = run[1], run[2]
                self._latch(run, now)
                self.shift = (total - n * self.mu) / (n + 1.0)
                return

    def _latch(self, run: list[float], now: float) -> float:
        """The pace has left the long run: take back what the run of odd samples did to it; by how much that was."""
        self._well, self._well_at = 0.05, now
        mu, rest = self.mu, self.weight - run[3]
        if rest > 1.0:
            self.mu = (self.mu * self.weight - run[4]) / rest
            self.weight = rest
        self._slower[:] = self._faster[:] = NO_RUN
        return mu - self.mu

    def _recover(self, y: float, now: float) -> None:
        """Is it itself again? The time that has passed makes it likelier, the samples decide."""
        assert self.shift is not None
        stays = math.exp(-max(now - self._well_at, 0.0) / self._settings.recover_every_s)
        well = 1.0 - (1.0 - self._well) * stays
        says = self.shift * (0.5 * self.shift - (y - self.mu)) / self.var
        well = well / (well + (1.0 - well) * math.exp(min(max(-says, -50.0), 50.0)))
        self._well, self._well_at = max(well, 0.01), now
        if well > 0.5:
            self.forget(0.0)


class Flight:
    """A call that is running."""

    __slots__ = ("arm", "busy", "load", "model", "price", "probe", "start", "work")

    def __init__(self, arm: Arm, start: float, work: Work, price: int, model: str) -> None:
        self.arm = arm
        self.start = start
        self.work = work
        self.load = arm.law.load(work)
        self.price = price  # nanos
        self.model = model
        self.probe = False
        self.busy = 1  # calls that its target had when it left, with this one


class Arm:
    """One target doing one operation: its pace, its reliability, and its calls in flight."""

    __slots__ = (
        "_answered",
        "_at",
        "_refreshed",
        "_settings",
        "_stepped",
        "bills",
        "breaker",
        "fail_s",
        "failures",
        "flights",
        "fresh_until",
        "hour",
        "last_fail_s",
        "law",
        "n",
        "out",
        "p",
        "p_long",
        "pace",
        "seen",
        "silence",
        "stalls",
        "successes",
        "target",
    )

    def __init__(
        self, target: str, law: SizeLaw, breaker: Breaker, prior: Prior | None, settings: RoutingSettings
    ) -> None:
        success = prior.success if prior is not None else None
        self.target = target
        self.law = law
        self.breaker = breaker  # the target's, whatever the operation
        self.hour = Hour()
        self.pace = Pace(prior, settings)
        self._settings = settings
        self.p_long = min(max(success, 0.02), 0.999) if success is not None else DEFAULT_SUCCESS
        self.n = 0.0  # long-run outcomes
        self.seen = -math.inf  # when it was last heard of
        self.successes = 0.0  # recent ones
        self.failures = 0.0
        self.fail_s = 0.0  # the recent failures' seconds, summed
        self.last_fail_s = 1.0
        self.bills = [0.0, 0.0]  # failures known to have been billed or not, and those that were
        self.stalls = STALLS  # share of its calls that never answer
        self.flights: dict[str, Flight] = {}
        self.silence = 0.0  # surprise of the running calls that were started after the last one that was answered
        self.p = self.p_long  # the estimate
        self.out = [0.0] * 5  # not yet told: successes, failures, their seconds, outcomes for the long run, good ones
        self._answered = -math.inf  # start of the latest call that was answered
        self._stepped = -math.inf  # when the long run last took a sample
        self._at = -math.inf  # the recent sums are aged to here
        self._refreshed = -math.inf
        self.fresh_until = -math.inf  # until then there is no need to refresh

    # -- reading

    def refresh(self, now: float) -> None:
        """Bring the estimates up to ``now``."""
        self._age(now)
        s = self._settings
        pace = self.pace
        stuck = silence = hazards = information = 0.0
        if self.flights:
            answered, q = self._answered, self.stalls
            scale = _STEPS / pace.sigma
            base = pace.quiet * scale + _LOW * _STEPS
            log = math.log
            for flight in self.flights.values():
                age = now - flight.start
                if age <= 0.0:
                    continue
                i = int((log(age) - flight.load) * scale - base)
                if i < 0:
                    continue
                hazard, informs, survival, surprise = _TAIL[i if i < _LAST else _LAST]
                if flight.start > answered:
                    silence += surprise
                hazards += hazard
                information += informs
                if hazard > 2.0:
                    stuck += q / (q + (1.0 - q) * survival)
        self.silence = silence
        pace.estimate(hazards, information, now)
        good = s.success_strength * self.p_long + self.successes
        self.p = max(0.02, good / (s.success_strength + self.successes + self.failures + stuck))
        self._refreshed = now
        self.fresh_until = now + min(FRESH_S, FRESH * pace.mean_s)

    def touch(self) -> None:
        """Something changed: the estimates need a refresh soon."""
        self.fresh_until = min(self.fresh_until, self._refreshed + HASTE_S * len(self.flights))

    # -- learning

    def on_success(self, latency_s: float, work: Work, start: float, now: float) -> None:
        self._age(now)
        pace = self.pace
        step = self._step(now)
        y = math.log(max(latency_s, 1e-4)) - self.law.load(work)
        known = pace.weight >= 1.0
        error = pace.learn(y, step, now - self.seen, now)
        if known and error is not None:
            self.law.learn(error, pace.var, work)
        self.successes += 1.0
        self.stalls -= self.stalls / self._stall_samples()
        self._answered = max(self._answered, start)
        self._outcome(1.0, step)
        self.seen = now
        self.touch()
        self.out[0] += 1.0

    def on_failure(self, seconds: float, now: float, *, billed: bool | None = None, news: bool = True) -> None:
        """Learn from a failure. ``news`` is False for what is known already: a probe of an ejected target."""
        self._age(now)
        self.failures += 1.0
        self.fail_s += seconds
        self.last_fail_s = seconds
        if billed is not None:
            self.bills[0] += 1.0
            self.bills[1] += billed
        if news:
            self._outcome(0.0, self._step(now))
        self.seen = now
        self.fresh_until = -math.inf
        self.out[1] += 1.0
        self.out[2] += seconds

    def on_limit(self, seconds: float, flight: Flight, now: float) -> float:
        """Learn from a call that was given up after ``seconds``; the probability that it would never have ended.

        As far as its work explains that it took so long, it is a slow call cut short; for the rest it was stuck.
        """
        if seconds <= 0.0:
            return 0.0
        self._age(now)
        pace = self.pace
        z = (math.log(seconds) - flight.load - pace.m) / pace.sigma
        hazard, information, survival, _ = _tail(min(max(z, _LOW), 6.0))
        stuck = self.stalls / (self.stalls + (1.0 - self.stalls) * survival)
        pace.cut_short(hazard, information, 1.0 - stuck)
        self.stalls += (stuck - self.stalls) / self._stall_samples()
        self.fresh_until = -math.inf
        return stuck

    def recovered(self, keep: float) -> None:
        """It is back: what was seen while it was not says little about what comes next."""
        self.pace.forget(keep)
        self.failures *= keep
        self.fail_s *= keep
        self.fresh_until = -math.inf

    def told(self) -> list[float]:
        """What has been learnt since the last call, as sums for ``absorb``."""
        sums = self.pace.out + self.out
        self.pace.out = [0.0] * 4
        self.out = [0.0] * 5
        return sums

    def absorb(self, sums: Sequence[float], now: float, seen_s: float | None) -> None:
        """Add what another replica told at ``now``; sums only, so the order of replicas does not matter.

        What was told some time ago is old news: it counts as much less as what is known from then.
        """
        keep = math.exp(min(now - self._at, 0.0) * LN2 / self._settings.half_life_s)
        self._age(now)
        n, y, weight, heavy, successes, failures, fail_s, outcomes, good = sums
        pace = self.pace
        pace.n += n * keep
        pace.y += y * keep
        if weight > 0.0:
            pace.weight = min(pace.weight + weight, self._settings.memory)
            pace.mu += (heavy / weight - pace.mu) * min(weight / pace.weight, 1.0)
        self.successes += successes * keep
        self.failures += failures * keep
        self.fail_s += fail_s * keep
        if outcomes > 0.0:
            self.n = min(self.n + outcomes, self._settings.memory)
            self.p_long += (good / outcomes - self.p_long) * outcomes / (self.n + 10.0)
        if seen_s is not None:
            self.seen = max(self.seen, now - seen_s)
        self.fresh_until = -math.inf

    def _age(self, now: float) -> None:
        dt = now - self._at
        if dt <= 0.0:
            return
        self._at = now
        keep = math.exp(-dt * LN2 / self._settings.half_life_s)
        self.pace.n *= keep
        self.pace.y *= keep
        self.successes *= keep
        self.failures *= keep
        self.fail_s *= keep

    def _step(self, now: float) -> float:
        """A sample's weight in the long run: after the first ten, one in full per ``memory_step_s`` at most."""
        step = 1.0 if self.n < 10.0 else min(1.0, max(0.0, (now - self._stepped) / self._settings.memory_step_s))
        self._stepped = now
        return step

    def _stall_samples(self) -> float:
        return STALL_SAMPLES + self.n

    def _outcome(self, value: float, step: float) -> None:
        self.n = min(self.n + step, self._settings.memory)
        self.p_long += (value - self.p_long) * step / (self.n + 10.0)
        self.out[3] += step
        self.out[4] += step * value
