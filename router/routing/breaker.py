"""Whether a target may be used now: outage, rate limit, credential, capacity and drain, each kept apart.

A target is ejected by *surprise*, not by absolute badness: by a run of failures that its own long run makes unlikely,
by a success rate far under its own, or by running calls that all seem stuck. It comes back by a single live request,
after a pause that doubles and is jittered.
"""

from __future__ import annotations

import math
import random as random_module
from collections.abc import Callable, Mapping
from typing import Any

from router.routing.settings import RoutingSettings
from router.routing.sketch import wilson

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"
STUCK = "stuck"
LOW_SUCCESS = "low success"
PROBE = "probe"
CLAIM_S = 5.0  # a probe that was handed out has this long to start
RARE = 0.01  # a run of failures is surprising when chance would make it less often than this, or than once an hour
PER_HOUR = 20.0  # recent outcomes halve every two minutes: an hour holds so many times their sum
PROVEN, PROVEN_FADES = 4.0, 0.001  # calls at once that anybody can serve; what was proven fades by this per success
ALWAYS_BAD = 12  # ... and after so many in any case
LEAST_RUN = 2.0  # one failure is an accident
BELIEF = 4.0  # outcomes that the long run counts as beside the recent ones


class Breaker:
    """One target's gates. Times are on the selector's clock."""

    __slots__ = (
        "_claimed_until",
        "_keep",
        "_news",
        "_on_news",
        "_random",
        "_served",
        "_settings",
        "blocked_until",
        "cap",
        "changed",
        "drained",
        "elsewhere",
        "in_flight",
        "level",
        "limited_until",
        "probing",
        "proven",
        "reason",
        "run",
        "state",
        "until",
        "watched",
    )

    def __init__(
        self, settings: RoutingSettings, random: random_module.Random, on_news: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self._random = random
        self._on_news = on_news  # called when other replicas should hear of a gate at once
        self._news = False  # a gate moved here since the last ``told``
        self.watched = False  # something may be in the way: without this there is nothing to check
        self.state = CLOSED
        self.reason: str | None = None  # why it was last opened
        self.until = 0.0  # end of the pause
        self.changed = -math.inf  # when the state last changed
        self.level = 0  # pauses in a row
        self.run = 0  # failures in a row
        self.probing: str | None = None  # attempt id of the probe
        self._claimed_until = -math.inf
        self.limited_until = 0.0
        self.blocked_until = 0.0
        self.drained = False
        self._keep = 0.0
        self.in_flight = 0
        self.elsewhere = 0  # in flight at other replicas
        self.cap = math.inf  # calls at once, learnt from refusals
        self._served = 0  # successes since the cap last moved
        self.proven = PROVEN  # calls at once that it has been seen to answer

    def check(self, now: float, limit: float) -> tuple[str | None, float | None]:
        """Why the target is out (None: it is in; ``probe``: due for one), and until when if that is known.

        ``limit`` is its configured concurrency. Without one of its own a target that nobody refuses has none.
        """
        if self.drained:
            return "drained", None
        if now < self.blocked_until:
            return "blocked", self.blocked_until
        if now < self.limited_until:
            return "rate_limited", self.limited_until
        busy = self.in_flight + self.elsewhere
        if busy >= limit:
            return "limit", None
        if busy >= self.cap:
            return "full", None
        if self.state == CLOSED:
            self.watched = not math.isinf(self.cap)
            return None, None
        if self.state == OPEN and now < self.until:
            return f"ejected: {self.reason}", self.until
        if self.probing is not None or now < self._claimed_until:
            return "ejected: probe running", None
        return PROBE, None

    def claim(self, now: float) -> None:
        """A probe has been handed out; if its attempt does not start soon, the next request gets it."""
        self.state = HALF_OPEN
        self._claimed_until = now + CLAIM_S

    def started(self, attempt_id: str) -> bool:
        """An attempt begins; True if it is the probe."""
        self.in_flight += 1
        if self.state == HALF_OPEN and self.probing is None:
            self.probing = attempt_id
            return True
        return False

    def ended(self, attempt_id: str) -> None:
        self.in_flight -= 1
        if self.probing == attempt_id:
            self.probing = None
            self._claimed_until = -math.inf

    def eject(self, reason: str, now: float, keep: float = 0.0) -> None:
        """Open, or open again. ``keep`` is the share of the recent failures that will still count when it is back:
        those from before the run that opened it."""
        s = self._settings
        pause = min(s.open_cap_s, s.open_s * 2.0 ** min(self.level, 20))
        self.state, self.reason, self.changed = OPEN, reason, now
        self.watched = True
        self._keep = keep
        self.until = now + pause * (0.5 + 0.5 * self._random.random())
        self.level += 1
        self._moved()

    def succeeded(self, probe: bool, busy: int, now: float) -> float | None:
        """A success of a call that left as one of ``busy``. If it ends an ejection: the share of the recent failures
        that still counts, else None."""
        self.run = 0
        proven = self.proven + (PROVEN - self.proven) * PROVEN_FADES
        self.proven = proven if proven > busy else float(busy)
        self._served += 1
        if self._served >= self.cap:
            self.cap += 1.0
            self._served = 0
        # A call from before the ejection proves nothing, unless the target was thought stuck: then any answer does.
        if self.state == CLOSED or not (probe or self.reason == STUCK):
            return None
        self.state, self.level, self.changed = CLOSED, 0, now
        self._moved()
        return self._keep

    def failed(self, probe: bool, p_long: float, successes: float, failures: float, now: float) -> None:
        """A failure. ``p_long`` is the target's long-run success, the two others are its recent sums."""
        self.run += 1
        if self.state != CLOSED:
            if probe:
                self.eject(self.reason or "failures", now, self._keep)
            return
        # What was known before this run: a target that is failing half its calls already does not surprise by three.
        before = max(failures - self.run, 0.0)
        recent = (BELIEF * p_long + successes) / (BELIEF + successes + before)
        bad = min(max(1.0 - min(p_long, recent), 1e-3), 0.99)
        rare = min(RARE, 1.0 / (PER_HOUR * (successes + failures)))
        if self.run >= min(ALWAYS_BAD, max(LEAST_RUN, math.log(rare) / math.log(bad))):
            self.eject(f"{self.run} failures in a row", now, before / failures)
        elif successes + failures >= 4.0 and wilson(successes, successes + failures)[1] < 0.6 * p_long:
            self.eject(LOW_SUCCESS, now, 0.5)

    def limited(self, probe: bool, retry_after_s: float | None, now: float) -> None:
        """The target has enough: remember how much that was, and close until it wants to be asked again."""
        s = self._settings
        self.cap = max(1.0, math.floor(min(self.cap, float(self.in_flight)) * s.cap_backoff))
        self._served = 0
        self.watched = True
        if retry_after_s is not None:
            self.limited_until = max(self.limited_until, now + min(retry_after_s, s.retry_after_cap_s))
            self._moved()
        if probe:
            self.eject(self.reason or "rate limit", now, self._keep)

    def blocked(self, now: float) -> None:
        """Our credential, credit or quota was refused."""
        self.blocked_until = now + self._settings.blocked_s
        self.watched = True
        self._moved()

    def drain(self, out: bool) -> None:
        """The operator's hand: take it out, or let it in again."""
        self.drained = out
        self.watched = True

    def unblock(self) -> None:
        """Our account is in order again."""
        self.blocked_until = 0.0

    def _moved(self) -> None:
        self._news = True
        self._on_news()

    def told(self, now: float) -> dict[str, Any]:
        """What other replicas should know: the gates, with their age, if one moved here since the last call; else
        nothing. What was heard from another replica is not told again: everybody hears everybody."""
        gate: dict[str, Any] = {}
        if not self._news:
            return gate
        self._news = False
        if self.changed > -math.inf:
            pause, age = max(0.0, self.until - now), now - self.changed
            gate["state"] = [self.state == CLOSED, self.reason, pause, self.level, age]
        if self.limited_until > now:
            gate["limited_s"] = self.limited_until - now
        if self.blocked_until > now:
            gate["blocked_s"] = self.blocked_until - now
        return gate

    def hear(self, gate: Mapping[str, Any], now: float) -> None:
        """Another replica's gates: of the states the newer one holds, of the pauses the longer one."""
        if "state" in gate:
            closed, reason, pause, level, age = gate["state"]
            if now - age > self.changed and self.probing is None:
                self.state, self.reason = CLOSED if closed else OPEN, reason
                self.until, self.level, self.changed = now + pause, level, now - age
        self.watched = True
        self.limited_until = max(self.limited_until, now + gate.get("limited_s", 0.0))
        self.blocked_until = max(self.blocked_until, now + gate.get("blocked_s", 0.0))
