"""Whether a target may be used: outage, rate limit, credential and drain, each kept apart.

A target is ejected by *surprise*, not by absolute badness: by a run of failures that its own long run makes unlikely,
by a success rate far under its own, or by calls that all seem stuck. It comes back by a single probe, after a pause
that doubles and is jittered, and that at low traffic also waits for some requests served elsewhere.
"""

from __future__ import annotations

import math
import random as random_module

from router.routing.settings import RoutingSettings
from router.routing.stats import wilson

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"


class Breaker:
    """One target's gates. Times are on the selector's clock."""

    __slots__ = (
        "_claim_until",
        "_random",
        "_settings",
        "_streak",
        "_successes",
        "blocked_until",
        "cap",
        "drained",
        "in_flight",
        "level",
        "limited_until",
        "probing",
        "reason",
        "run",
        "state",
        "until",
    )

    def __init__(self, settings: RoutingSettings, random: random_module.Random) -> None:
        self._settings = settings
        self._random = random
        self.state = CLOSED
        self.reason: str | None = None  # why it was last opened
        self.until = 0.0  # end of the pause
        self.level = 0  # pauses in a row
        self.run = 0  # failures in a row
        self.probing: str | None = None  # attempt id of the probe
        self._claim_until = -math.inf
        self.limited_until = 0.0
        self.blocked_until = 0.0
        self.drained = False
        self.in_flight = 0
        self.cap = math.inf  # learnt from refusals
        self._successes = 0
        self._streak = 0

    def check(self, now: float, limit: float) -> tuple[str | None, float | None]:
        """Why the target is out (None: it is in; ``probe``: due for one), and until when if that is known."""
        if self.drained:
            return "drained", None
        if now < self.blocked_until:
            return "blocked", self.blocked_until
        if now < self.limited_until:
            return "rate_limited", self.limited_until
        if self.in_flight >= limit:
            return "limit", None
        if self.in_flight >= self.cap:
            return "full", None
        if self.state == CLOSED:
            return None, None
        if self.state == OPEN and now < self.until:
            return f"ejected: {self.reason}", self.until
        if self.probing is not None or now < self._claim_until:
            return "ejected: probe running", None
        return "probe", None

    def claim(self, now: float) -> None:
        """A probe has been handed out; if its attempt does not start soon, the next request gets it."""
        self.state = HALF_OPEN
        self._claim_until = now + 5.0

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
            self._claim_until = -math.inf

    def eject(self, reason: str, now: float) -> None:
        s = self._settings
        pause = min(s.open_cap_s, s.open_s * 2.0**self.level)
        self.state, self.reason = OPEN, reason
        self.until = now + pause * (0.5 + 0.5 * self._random.random())
        self.level += 1

    def succeeded(self, probe: bool) -> float | None:
        """A success. If it ends an ejection: the share of the recent failures that still counts."""
        self.run = 0
        self._successes += 1
        if self._successes >= self.cap:
            self.cap += 1.0
            self._successes = 0
        if self.state == CLOSED or not (probe or self.reason == "stuck"):
            return None
        total = self.reason != "low success"
        self.state, self.level = CLOSED, 0
        return 0.0 if total else 0.5

    def failed(self, now: float, probe: bool, p_long: float, successes: float, failures: float) -> None:
        self.run += 1
        if self.state != CLOSED:
            if probe:
                self.eject(self.reason or "failures", now)
            return
        bad = min(max(1.0 - p_long, 1e-3), 0.99)
        if self.run >= min(12.0, max(3.0, math.log(0.01) / math.log(bad))):
            self.eject(f"{self.run} failures in a row", now)
        elif successes + failures >= 4.0 and wilson(successes, successes + failures)[1] < 0.6 * p_long:
            self.eject("low success", now)

    def limited(self, now: float, retry_after_s: float | None) -> None:
        """The target has enough: remember how much that was, and close until it wants to be asked again."""
        s = self._settings
        others = max(1.0, float(self.in_flight))
        self.cap = max(1.0, math.floor(min(self.cap, others) * 0.7))
        self._successes = 0
        if retry_after_s is not None:
            self.limited_until = max(self.limited_until, now + min(retry_after_s, s.retry_after_cap_s))

    def blocked(self, now: float) -> None:
        self.blocked_until = now + self._settings.blocked_s
