"""After a failed attempt: retry the same target, fail over to another, or stop. One table, and the money it may risk.

class         other target         same target, if alone  why
not_sent      at once, uncounted   twice                  provably never reached the provider
auth          yes                  never                  ours to repair; the same call fails again
rate_limited  yes                  after Retry-After      the target is well, but has enough
bad_request   no                   never                  the client's to repair
refused       no (opt-in)          never                  asking elsewhere evades a content policy
server_error  if waste allows      once, if not billed    may have been billed, unless the facts say no
no_answer     if waste allows      never                  may have been billed
unusable      if waste allows      never                  was billed
download      no                   never                  the picture exists and is paid: never make it again
cancelled     no                   never                  somebody stopped it
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from router.errors import Billed, ErrorKind

BACKOFF_S = 1.0
BACKOFF_CAP_S = 32.0


@dataclass(frozen=True, slots=True)
class Next:
    """What to do now. ``delay_s`` comes first; ``reason`` is for the record."""

    action: str  # retry, failover, stop
    delay_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Rule:
    other: bool  # try another target
    same: int  # times the same target may be tried again when there is no other


RULES: Mapping[ErrorKind, Rule] = {
    ErrorKind.NOT_SENT: Rule(True, 2),
    ErrorKind.AUTH: Rule(True, 0),
    ErrorKind.RATE_LIMITED: Rule(True, 2),
    ErrorKind.BAD_REQUEST: Rule(False, 0),
    ErrorKind.REFUSED: Rule(False, 0),
    ErrorKind.SERVER_ERROR: Rule(True, 1),
    ErrorKind.NO_ANSWER: Rule(True, 0),
    ErrorKind.UNUSABLE: Rule(True, 0),
    ErrorKind.DOWNLOAD: Rule(False, 0),
    ErrorKind.CANCELLED: Rule(False, 0),
}


def backoff_s(attempt_no: int, draw: float) -> float:
    """Full jitter: uniform between nothing and 1 s doubling to 32 s. ``attempt_no`` counts from 1."""
    return draw * min(BACKOFF_CAP_S, BACKOFF_S * 2.0 ** min(attempt_no - 1, 10))


def next_step(
    kind: ErrorKind,
    billed: Billed,
    *,
    attempt_no: int,
    unsent: int,
    attempts: int,
    others: bool,
    remaining_s: float | None,
    retry_after_s: float | None,
    retry_after_cap_s: float,
    affordable: bool,
    retry_allowed: bool,
    refused_elsewhere: bool,
    draw: float,
) -> Next:
    """The table, applied.

    ``attempt_no`` counts all attempts, ``unsent`` those of them that never reached a provider: they are no one's load,
    and neither the limit of attempts nor the retry budget is meant for them. ``others``: another target stands ready;
    ``affordable``: the waste budget covers a second bill; ``retry_after_cap_s``: no request waits for longer.
    """
    rule = RULES[kind]
    other = rule.other or (kind is ErrorKind.REFUSED and refused_elsewhere)
    if not other and rule.same == 0:
        return Next("stop", 0.0, f"{kind}: never repeated")
    if attempt_no - unsent >= attempts:
        return Next("stop", 0.0, f"{attempts} attempts made")
    if remaining_s is not None and remaining_s <= 0:
        return Next("stop", 0.0, "the deadline has passed")
    if billed is not Billed.NO and not affordable:
        return Next("stop", 0.0, f"{kind} may have been billed and the waste budget is spent")
    if others:
        return Next("failover", 0.0, f"{kind}: another target")
    if rule.same < attempt_no:
        return Next("stop", 0.0, f"{kind}: no other target")
    if billed is not Billed.NO:
        return Next("stop", 0.0, f"{kind} may have been billed and there is no other target")
    if not retry_allowed and kind is not ErrorKind.NOT_SENT:
        return Next("stop", 0.0, "the retry budget is spent")
    delay = backoff_s(attempt_no, draw)
    if retry_after_s is not None:
        if retry_after_s > retry_after_cap_s:
            return Next("stop", 0.0, f"{kind}: the target asks to wait {retry_after_s:.0f} s")
        delay = max(retry_after_s, 0.0) + delay * 0.1
    if remaining_s is not None and delay >= remaining_s:
        return Next("stop", 0.0, f"{kind}: waiting {delay:.1f} s would pass the deadline")
    return Next("retry", delay, f"{kind}: the same target, there is no other")


def rescue_delay(
    ln_median: float,
    sigma: float,
    *,
    stuck_share: float,
    backup_mean_s: float,
    backup_price_nanos: float,
    value_of_time: float,
    value_nanos: float = 5e7,
    limit_s: float = 120.0,
) -> float | None:
    """Seconds of waiting after which a second copy elsewhere is worth its price; None if never within ``limit_s``.

    A copy pays when  lambda x (E[remaining] - E[backup]) + P(stuck) x value > (1 - P(stuck)) x price of the copy,
    with P(stuck) = q / (q + (1 - q) S(elapsed)), q the share of this target's calls that never answer and S its
    survival function. ``value_of_time`` is in nanos per second, ``value_nanos`` what a lost request costs.
    """
    q = min(max(stuck_share, 1e-4), 0.5)

    def gain(elapsed: float) -> float:
        z = (math.log(elapsed) - ln_median) / sigma
        alive = 0.5 * math.erfc(z * math.sqrt(0.5))
        stuck = q / (q + (1.0 - q) * alive) if alive > 0 else 1.0
        beyond = 0.5 * math.erfc((z - sigma) * math.sqrt(0.5))
        mean = math.exp(ln_median + 0.5 * sigma * sigma)
        remaining = mean * beyond / alive - elapsed if alive > 1e-12 else 0.0
        remaining = stuck * (limit_s - elapsed) + (1.0 - stuck) * max(remaining, 0.0)
        saved = value_of_time * (remaining - backup_mean_s)
        return saved + stuck * value_nanos - (1.0 - stuck) * backup_price_nanos

    elapsed = math.exp(ln_median)
    while elapsed < limit_s:
        if gain(elapsed) > 0:
            return elapsed
        elapsed *= 1.02
    return None
