"""What is known about one target doing one operation, and how old that knowledge is.

A target is itself, or it is in trouble. Its own pace and success are learnt from every sample and drift slowly. In
trouble its pace is off, or it is ill: by how much nobody knows beforehand, and for a while. The odds between the two
move with time (a target may fall into trouble, and come out of it, unobserved) and with what each sample says, so that
a rare sample counts for long and a surprising one at once, and a trouble does not become what is normal.

Latency is log-normal, divided by the work asked for (``SizeLaw``). A call still running is evidence as well: it is
already known to be at least that slow, and the longer it lasts the likelier it is stuck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from router.routing.breaker import Breaker
from router.routing.hour import Hour
from router.routing.settings import DEFAULT_P50_S, Prior, RoutingSettings
from router.routing.work import SizeLaw, Work

LN2 = math.log(2.0)
SUMS = 5  # numbers that replicas tell each other of an arm
Z95 = 1.6448536269514722  # standard normal quantile of 0.95
SQRT_HALF = math.sqrt(0.5)

DEFAULT_SIGMA = 0.6
DEFAULT_SUCCESS = 0.98
LEAST_SIGMA = 0.08
SIGMA_SAMPLES = 5.0  # what the spread counts as, before there are any
FIRM = 10.0  # outcomes that the first guess of a target's success counts as
ILL = (1.0, 1.0)  # successes and failures to be expected of a target that has just fallen ill
FAIL_SAMPLES = 2.0  # what an unknown failure's duration counts as
FAILS, MOST_AFTER = 30.0, 4.0  # failures whose duration is remembered, and what one may say
STALLS, STALL_SAMPLES = 0.001, 100.0  # share of calls that hang, until learnt, and how firmly that is believed
FRESH_S, FRESH = 0.5, 0.1  # estimates are good for so many seconds, and for this share of a call
AGE_S = 1.0  # in less time nothing ages noticeably
HASTE_S = 2e-4  # ... and after an answer for this long per running call: each is looked at anew, which takes time
DRIFT = 0.003 / 3600.0  # variance that a target's own pace gains in a second
PEERS_SPREAD = 0.6  # log-seconds by which targets of one model differ
GLITCH, GLITCH_SIZE = 0.01, 2.0  # share of answers that are accidents and say nothing, and how far off they are
LASTING, LASTS = 2.0, 0.9  # what lasts for so many usual troubles, so surely, is none
OFF_SAMPLES = 30.0  # the pace of a target that is off is known no better than from so many
SURE = 1.0 - 1e-6  # more than that nothing is
STEPS = 10  # in which the samples of another replica are learnt
ODD = 5.0  # what the silence of one call may say, in log-odds
NOT_BEGUN = -99.0  # log-seconds of a call that was not there yet

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
_LATE = 2 * _STEPS  # from the median on, silence says enough to be counted


class Passing(NamedTuple):
    """What time does to a trouble, unobserved: two states, left at two constant rates."""

    stays: float  # probability that there is one, if there was
    goes: float  # ... if there was none
    lasts: float  # that it is still the same one

    @classmethod
    def after(cls, dt: float, trouble_every_s: float, recover_every_s: float) -> Passing:
        share = recover_every_s / (recover_every_s + trouble_every_s)  # of all time
        lasts = math.exp(-dt / recover_every_s)
        memory = lasts * math.exp(-dt / trouble_every_s)
        return cls(share + (1.0 - share) * memory, share * (1.0 - memory), lasts)


class Pace:
    """How fast a target is, in log-seconds for one picture of one megapixel.

    Either it is itself, with a pace that drifts slowly, or it is *off*: slower or faster by an amount nobody knows
    beforehand, for a while. Both are kept, each with its uncertainty and the odds between them. Time lets a target go
    off and come back, and samples decide: a rare one counts for long, and a surprising one at once.
    """

    __slots__ = (
        "_base",
        "_base_v",
        "_lasted",
        "_off_m",
        "_off_p",
        "_off_v",
        "_settings",
        "_v",
        "m",
        "mean_s",
        "mu",
        "off",
        "off_sd",
        "out",
        "quiet",
        "quiet_sigma",
        "sd",
        "sigma",
        "var",
        "weight",
        "well",
    )

    def __init__(self, prior: Prior | None, settings: RoutingSettings) -> None:
        p50 = prior.p50_s if prior is not None else None
        p95 = prior.p95_s if prior is not None else None
        if p95 and not p50:
            p50, p95 = p95 * math.exp(-Z95 * DEFAULT_SIGMA), None
        self._settings = settings
        self.sigma = max(LEAST_SIGMA, math.log(p95 / p50) / Z95) if p50 and p95 else DEFAULT_SIGMA
        self.var = self.sigma * self.sigma
        self.weight = prior.samples if prior is not None and p50 else 0.0  # samples behind mu, and behind sigma
        self.out = [0.0, 0.0]  # learnt and not yet told to other replicas: number of samples, and their sum
        self._begin(math.log(p50 or DEFAULT_P50_S), self.var / (self.weight + 1.0))
        self.suppose(self.mu)

    def _begin(self, m: float, v: float) -> None:
        self.mu, self._v = m, v  # itself: mean and variance of the pace
        self._base, self._base_v = m, v  # the same, for what it will be again if it is off now
        self._off_p = 0.0  # probability that it is off
        self._lasted = 0.0  # seconds for which it has been, if it is
        self._off_m, self._off_v = m, v + self._settings.change_size**2  # the pace if it is

    def suppose(self, m: float) -> None:
        """Nothing is known of this target: reckon with what its peers do."""
        self.m = self.quiet = m
        self.quiet_sigma = self.sigma
        self.sd = math.sqrt(self._v)
        self.off, self.off_sd = 0.0, 1.0
        self.mean_s = math.exp(m + 0.5 * self.var)
        self.well = 1.0  # share of that which it takes when it is itself

    def adopt(self, m: float) -> None:
        """Nothing is known of this target, but it is being used: begin with what its peers do."""
        self.weight = 1.0
        self._begin(m, PEERS_SPREAD**2)
        self.suppose(m)

    def age(self, dt: float, passing: Passing) -> None:
        """Let time pass."""
        was = self._off_p
        self._off_p = off = was * passing.stays + (1.0 - was) * passing.goes
        fresh = 1.0 - was * passing.lasts / off if off > 0.0 else 0.0
        comes = was * (1.0 - passing.stays) / (1.0 - off)
        self._lasted = (1.0 - fresh) * (self._lasted + dt)
        mu, v, base, base_v = self.mu, self._v, self._base, self._base_v
        self._off_m, self._off_v = _mix(self._off_m, self._off_v, mu, v + self._settings.change_size**2, fresh)
        self._base, self._base_v = _mix(base, base_v, mu, v, fresh)
        self.mu, v = _mix(mu, v, base, base_v, comes)
        self._v = v + DRIFT * dt
        if self._lasted > LASTING * self._settings.recover_every_s and self._off_p > LASTS:
            # No trouble lasts so long: this is what it is now, and what it was before is what it may be off to.
            self.mu, self._v, self._off_m, self._off_v = self._off_m, self._off_v, self.mu, self._v
            self._base, self._base_v = self.mu, self._v
            self._off_p, self._lasted = 1.0 - self._off_p, 0.0

    def estimate(self, running: Sequence[tuple[float, float]]) -> None:
        """Bring the estimate up to date. ``running`` are the log-seconds, less their work, that calls have lasted until
        now, and until the latest answer."""
        mu, v, m, w, p = self.mu, self._v, self._off_m, self._off_v, self._off_p
        var = self.var
        self.quiet, self.quiet_sigma = (mu, math.sqrt(var + v)) if p < 0.5 else (m, math.sqrt(var + w))
        if running:
            said_well, mu, v = self._lasting(running, mu, v)
            said_off, m, w = self._lasting(running, m, w)
            p = 1.0 / (1.0 + (1.0 - p) / max(p, 1e-9) * _odds(said_well - said_off))
        # Every decision is kept with these.
        self.off = p = round(p, 4)
        self.sd, self.off_sd = round(math.sqrt(v), 4), round(math.sqrt(w), 4)
        well_s = math.exp(mu + 0.5 * (var + v))
        off_s = math.exp(m + 0.5 * (var + w))
        self.mean_s = (1.0 - p) * well_s + p * off_s
        self.well = well_s / self.mean_s
        self.m = mu + p * (m - mu)

    def _lasting(self, running: Sequence[tuple[float, float]], mean: float, v: float) -> tuple[float, float, float]:
        """What calls that still run say of a pace: log-likelihood, and its mean and variance after that.

        Only their silence since the latest answer counts: while answers come as usual, one that takes longer is none
        of the target's. Where many run at once some are always late, and would speak up together.
        """
        spread = math.sqrt(self.var + v)
        scale = _STEPS / spread
        base = mean * scale + _LOW * _STEPS
        says = hazards = information = 0.0
        for y, before in running:
            i = int(y * scale - base)
            if i >= 0:
                hazard, informs, _, surprise = _TAIL[i if i < _LAST else _LAST]
                j = int(before * scale - base)
                if j >= 0:
                    known = _TAIL[j if j < _LAST else _LAST]
                    hazard, informs, surprise = hazard - known[0], informs - known[1], surprise - known[3]
                hazards += hazard
                information += informs
                says -= surprise if surprise < ODD else ODD
        # Each call is judged with the pace's own uncertainty, which they share: it is counted once.
        share = v / (v * information + self.var)
        return says, mean + share * spread * hazards, v * (1.0 - share * information)

    def learn(self, y: float) -> float | None:
        """Learn one sample; the error if that is fit to teach the size law."""
        if self.weight == 0.0:
            self.adopt(y)
        self.out[0] += 1.0
        self.out[1] += y
        error, fair, weight = self._update(y, 1.0)
        n, memory, var = self.weight + 1.0, self._settings.memory, self.var
        self.weight = n = n if n < memory else memory
        square, most = error * error, 9.0 * var
        self.var = var = var + ((square if square < most else most) * fair - var) * weight / (n + SIGMA_SAMPLES)
        sigma = math.sqrt(var)
        self.sigma = sigma if sigma > LEAST_SIGMA else LEAST_SIGMA
        return error * fair if weight > 0.5 else None

    def hear(self, y: float, n: float) -> None:
        """Learn the mean of ``n`` samples; of the spread that tells nothing."""
        steps = min(math.ceil(n), STEPS)
        for _ in range(steps):
            self._update(y, n / steps)
        self.weight = min(self.weight + n, self._settings.memory)

    def _update(self, y: float, n: float) -> tuple[float, float, float]:
        """Learn the mean of ``n`` samples. By how much it was off what was expected; what share of such an error's
        variance is the samples' own; and the probability that it is no accident."""
        var = self.var / n
        odd = GLITCH * _density(y - self.mu, var + GLITCH_SIZE**2)
        if self.weight <= 1.0:  # what was only supposed gives way to a first sample that it did not expect
            apart, odd = (y - self.mu) ** 2, 0.0
            if apart > 9.0 * (self._v + var):
                self._v = apart
        well = _density(y - self.mu, var + self._v)
        off = _density(y - self._off_m, var + self._off_v)
        fit_well, fit_off = well / (well + odd), off / (off + odd)  # that it is no accident
        well, off = (1.0 - self._off_p) * (well + odd), self._off_p * (off + odd)
        off /= well + off
        self._off_p = off if off < SURE else SURE
        k = fit_off * self._off_v / (self._off_v + var)
        error_off = y - self._off_m
        self._off_m += k * error_off
        left, least = self._off_v * (1.0 - k), self.var / OFF_SAMPLES
        self._off_v = left if left > least else least
        k = fit_well * self._v / (self._v + var)
        error = y - self.mu
        fair = self.var / (self.var + self._v)
        self.mu += k * error
        self._v *= 1.0 - k
        itself = (1.0 - self._off_p) * fit_well
        if itself >= 0.5:
            return error, fair, itself
        return error_off, self.var / (self.var + self._off_v), self._off_p * fit_off

    def cut_short(self, y: float, weight: float) -> None:
        """Learn from a call that was given up: it would have been slower still."""
        says_well, mu, _ = self._lasting(((y, NOT_BEGUN),), self.mu, self._v)
        says_off, m, _ = self._lasting(((y, NOT_BEGUN),), self._off_m, self._off_v)
        p = self._off_p
        self._off_p = min(p / (p + (1.0 - p) * _odds(weight * (says_well - says_off))), SURE) if p > 0.0 else 0.0
        self.mu += weight * (mu - self.mu) * (1.0 - self._off_p)
        self._off_m += weight * (m - self._off_m)


def _odds(log_odds: float) -> float:
    """Hundreds of calls together can say more than a number holds; nothing is surer than this."""
    return math.exp(min(max(log_odds, -50.0), 50.0))


def _density(error: float, variance: float) -> float:
    return math.exp(-0.5 * error * error / variance) / math.sqrt(variance)


def _mix(m: float, v: float, other: float, other_v: float, share: float) -> tuple[float, float]:
    """Mean and variance of a mixture of two."""
    d = other - m
    return m + share * d, v + share * (other_v - v) + share * (1.0 - share) * d * d


class Reliability:
    """How often a target's attempts succeed: what it usually does, and what it does when it is *ill*."""

    __slots__ = ("_assumed", "_bad", "_good", "_ill", "_settings", "assumed", "ill", "n", "p", "well_p")

    def __init__(self, prior: Prior | None, settings: RoutingSettings) -> None:
        success = prior.success if prior is not None else None
        self._settings = settings
        self.well_p = min(max(success, 0.02), 0.999) if success is not None else DEFAULT_SUCCESS
        self.n = 0.0  # outcomes behind that
        self._ill = 0.0
        self._good, self._bad = ILL  # what its outcomes are when ill, as counts
        self.p = self.well_p  # the estimate
        self.ill = 0.0
        self._assumed = FIRM * (1.0 - self.well_p)  # failures that were only assumed,
        self.assumed = round(1.0 - self.well_p, 4)  # ... as a share of its calls

    def age(self, passing: Passing) -> None:
        """Let time pass."""
        was = self._ill
        self._ill = ill = was * passing.stays + (1.0 - was) * passing.goes
        fresh = 1.0 - was * passing.lasts / ill if ill > 0.0 else 0.0
        self._good += fresh * (ILL[0] - self._good)
        self._bad += fresh * (ILL[1] - self._bad)

    def estimate(self, stuck: float) -> None:
        """Bring the estimate up to date; so many running calls are believed stuck."""
        q, good, bad = self._ill, self._good, self._bad
        if stuck > 0.0:
            says = stuck * math.log(bad / (good + bad) / (1.0 - self.well_p))
            q = q / (q + (1.0 - q) * _odds(-says))
            bad += stuck
        self.ill = round(q, 4)  # every decision is kept with it, too
        self.p = max(0.02, self.well_p + q * (good / (good + bad) - self.well_p))

    def learn(self, good: float, bad: float) -> None:
        """Learn some outcomes."""
        p, a, b = self.well_p, self._good, self._bad
        if good + bad == 1.0:
            well, ill = (p, a / (a + b)) if good else (1.0 - p, b / (a + b))
        else:
            says = math.lgamma(a + good) + math.lgamma(b + bad) - math.lgamma(a + b + good + bad)
            says += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
            well, ill = 1.0, _odds(says - good * math.log(p) - bad * math.log(1.0 - p))
        q = self._ill
        q = q * ill / (q * ill + (1.0 - q) * well)
        self._ill = q = q if q < SURE else SURE
        self._good, self._bad = a + good, b + bad
        total = (good + bad) * (1.0 - q if self.n >= FIRM else 1.0)  # one must be known to be told from ill
        n, memory = self.n + total, self._settings.memory
        self.n = n = n if n < memory else memory
        self.assumed = round(self._assumed / (n + FIRM), 4)
        if total > 0.0:
            p += (good / (good + bad) - p) * (total / (n + FIRM) if total < n + FIRM else 1.0)
            self.well_p = 0.02 if p < 0.02 else p if p < 0.999 else 0.999

    def forget(self, keep: float) -> None:
        """Something is over: what is known of it counts for this share."""
        self._ill *= keep


class Flight:
    """A call that is running."""

    __slots__ = ("arm", "busy", "limit_s", "load", "model", "price", "probe", "start", "work")

    def __init__(self, arm: Arm, start: float, work: Work, price: int, model: str, limit_s: float) -> None:
        self.arm = arm
        self.start = start
        self.work = work
        self.load = arm.law.load(work)
        self.price = price  # nanos
        self.model = model
        self.limit_s = limit_s  # it is given up after this long
        self.probe = False
        self.busy = 1  # calls that its target had when it left, with this one


class Arm:
    """One target doing one operation: its pace, its reliability, and its calls in flight."""

    __slots__ = (
        "_answered",
        "_at",
        "_fails",
        "_heard",
        "_refreshed",
        "_settings",
        "bills",
        "breaker",
        "fail_shares",
        "fails_after",
        "failures",
        "flights",
        "fresh_until",
        "hour",
        "last_fail_s",
        "law",
        "out",
        "pace",
        "reliability",
        "seen",
        "silence",
        "stalls",
        "successes",
        "target",
    )

    def __init__(
        self, target: str, law: SizeLaw, breaker: Breaker, prior: Prior | None, settings: RoutingSettings
    ) -> None:
        self.target = target
        self.law = law
        self.breaker = breaker  # the target's, whatever the operation
        self.hour = Hour()
        self.pace = Pace(prior, settings)
        self._settings = settings
        self.reliability = Reliability(prior, settings)
        self.seen = -math.inf  # when it was last heard of
        self.successes = 0.0  # recent ones
        self.failures = 0.0
        self.fail_shares = 0.0  # the recent failures' seconds, as shares of what a success takes, summed
        self.last_fail_s = 1.0
        self.fails_after = 1.0  # seconds of a failure, as a share of a success's, in the long run
        self._fails = 0.0  # failures behind that
        self.bills = [0.0, 0.0]  # failures known to have been billed or not, and those that were
        self.stalls = STALLS  # share of its calls that never answer
        self.flights: dict[str, Flight] = {}
        self.silence = 0.0  # surprise of the running calls that were started after the last one that was answered
        self.out = [0.0] * 3  # not yet told: successes, failures, the shares of these
        self._heard = -math.inf  # when the latest answer came
        self._answered = -math.inf  # start of the latest call that was answered
        self._at = -math.inf  # the recent sums are aged to here
        self._refreshed = -math.inf
        self.fresh_until = -math.inf  # until then there is no need to refresh

    # -- reading

    def refresh(self, now: float) -> None:
        """Bring the estimates up to ``now``."""
        self._age(now)
        pace = self.pace
        stuck = silence = 0.0
        running: list[tuple[float, float]] = []
        if self.flights:
            answered, q, since = self._answered, self.stalls, now - self._heard
            scale = _STEPS / pace.quiet_sigma
            base = pace.quiet * scale + _LOW * _STEPS
            log = math.log
            for flight in self.flights.values():
                age = now - flight.start
                if age <= 0.0:
                    continue
                y = log(age) - flight.load
                i = int(y * scale - base)
                if i < 0:
                    continue
                hazard, _, survival, surprise = _TAIL[i if i < _LAST else _LAST]
                if flight.start > answered:
                    silence += surprise
                if i >= _LATE:
                    if age < since * _STEPS:  # else its silence since then is too short to show in the table
                        running.append((y, log(age - since) - flight.load if age > since else NOT_BEGUN))
                    if hazard > 2.0:
                        stuck += q / (q + (1.0 - q) * survival)
        self.silence = silence
        pace.estimate(running)
        self.reliability.estimate(stuck)
        self._refreshed = now
        self.fresh_until = now + min(FRESH_S, FRESH * pace.mean_s)

    def touch(self) -> None:
        """Something changed: the estimates need a refresh soon."""
        soon = self._refreshed + HASTE_S * len(self.flights)
        if soon < self.fresh_until:
            self.fresh_until = soon

    # -- learning

    def on_success(self, latency_s: float, work: Work, start: float, now: float) -> None:
        self._age(now)
        pace = self.pace
        y = math.log(latency_s if latency_s > 1e-4 else 1e-4) - self.law.load(work)
        known = pace.weight >= 1.0
        error = pace.learn(y)
        if known and error is not None:
            self.law.learn(error, pace.var, work)
        self.successes += 1.0
        self.stalls -= self.stalls / self._stall_samples()
        if start > self._answered:
            self._answered = start
        self._heard = now
        self.reliability.learn(1.0, 0.0)
        self.seen = now
        self.touch()
        self.out[0] += 1.0

    def on_failure(
        self, seconds: float, load: float, now: float, *, billed: bool | None = None, news: bool = True
    ) -> None:
        """Learn from a failure. ``news`` is False for what is known already: a probe of an ejected target."""
        self._age(now)
        share = seconds / (self.pace.mean_s * math.exp(load))
        self.failures += 1.0
        self.fail_shares += share
        self.last_fail_s = seconds
        if billed is not None:
            self.bills[0] += 1.0
            self.bills[1] += billed
        if news:
            self.reliability.learn(0.0, 1.0)
            self._fails = min(self._fails + 1.0, FAILS)
            self.fails_after += (min(share, MOST_AFTER) - self.fails_after) / (FAIL_SAMPLES + self._fails)
        self.seen = now
        self.fresh_until = -math.inf
        self.out[1] += 1.0
        self.out[2] += share

    def on_limit(self, seconds: float, flight: Flight, now: float) -> float:
        """Learn from a call that was given up after ``seconds``; the probability that it would never have ended.

        As far as its work explains that it took so long, it is a slow call cut short; for the rest it was stuck.
        """
        if seconds <= 0.0:
            return 0.0
        self._age(now)
        pace = self.pace
        y = math.log(seconds) - flight.load
        _, _, survival, _ = _tail(min(max((y - pace.m) / pace.sigma, _LOW), 6.0))
        stuck = self.stalls / (self.stalls + (1.0 - self.stalls) * survival)
        pace.cut_short(y, 1.0 - stuck)
        self.stalls += (stuck - self.stalls) / self._stall_samples()
        self.fresh_until = -math.inf
        return stuck

    def recovered(self, keep: float) -> None:
        """It is back: how often it failed while it was not says little about what comes next."""
        self.reliability.forget(keep)
        self.failures *= keep
        self.fail_shares *= keep
        self.fresh_until = -math.inf

    def told(self) -> list[float]:
        """What has been learnt since the last call, as sums for ``absorb``."""
        sums = self.pace.out + self.out
        self.pace.out = [0.0, 0.0]
        self.out = [0.0] * 3
        return sums

    def absorb(self, sums: Sequence[float], now: float, seen_s: float | None) -> None:
        """Add what another replica told at ``now``; sums only, so the order of replicas does not matter.

        What was told some time ago is old news: it counts as much less as what is known from then.
        """
        keep = math.exp(min(now - self._at, 0.0) * LN2 / self._settings.half_life_s)
        self._age(now)
        n, y, successes, failures, fail_shares = sums
        if n > 0.0:
            self.pace.hear(y / n, n)
        self.successes += successes * keep
        self.failures += failures * keep
        self.fail_shares += fail_shares * keep
        if successes + failures > 0.0:
            self.reliability.learn(successes, failures)
        if seen_s is not None:
            self.seen = max(self.seen, now - seen_s)
        self.fresh_until = -math.inf

    def _age(self, now: float) -> None:
        """Let the time pass that nobody has seen to yet; of many answers within a second, once."""
        dt = now - self._at
        if dt <= AGE_S:
            return
        self._at = now
        s = self._settings
        keep = math.exp(-dt * LN2 / s.half_life_s)
        if dt < math.inf:
            passing = Passing.after(dt, s.trouble_every_s, s.recover_every_s)
            self.pace.age(dt, passing)
            self.reliability.age(passing)
        self.successes *= keep
        self.failures *= keep
        self.fail_shares *= keep

    def _stall_samples(self) -> float:
        return STALL_SAMPLES + self.reliability.n
