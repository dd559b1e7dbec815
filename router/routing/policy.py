"""The choice itself, as a pure function: rows and an ask in, one row and the reason for it out.

One index decides: the expected dollars and waiting until a success, trying in turn until one works,

    price + lambda T + (1 - p) / p x (b price + lambda F + failure)

with p the probability of success, T and F the expected seconds of a success and of a failure, b the probability that
a failure is billed lambda the dollars that a second is worth, and failure what a failed attempt costs beside:
on the last attempt what a lost request costs, before that what the preset says. Amounts are nanos of a dollar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


class Row:
    """One candidate as it stood at the moment of the decision: everything that the choice depends on."""

    __slots__ = (
        "bill",
        "doubt",
        "fail_s",
        "in_flight",
        "index",
        "ln_median",
        "mean_s",
        "n",
        "p",
        "price",
        "priority",
        "provider",
        "sd",
        "sigma",
        "target",
        "unseen_s",
        "until",
        "weight",
        "well_p",
        "well_s",
        "why",
    )

    def __init__(
        self,
        target: str,
        provider: str,
        price: int,
        p: float,
        mean_s: float,
        fail_s: float,
        bill: float,
        ln_median: float,
        sigma: float,
        n: float,
        sd: float,
        unseen_s: float,
        doubt: float,
        in_flight: int,
        why: str | None,
        weight: float,
        priority: int,
    ) -> None:
        self.target = target
        self.provider = provider
        self.price = price  # nanos
        self.p = p  # probability of success, within the deadline if there is one
        self.mean_s = mean_s  # expected seconds of a success
        self.fail_s = fail_s  # expected seconds of a failure
        self.bill = bill  # probability that a failure is billed
        self.ln_median = ln_median
        self.sigma = sigma
        self.n = n  # samples the estimate rests on
        self.sd = sd  # uncertainty of the pace, in log-seconds
        self.unseen_s = unseen_s  # since it was last heard of
        self.in_flight = in_flight
        self.why = why  # None: eligible; PROBE: due for one; else the reason of its exclusion
        self.weight = weight
        self.priority = priority
        self.doubt = doubt  # probability that the estimate is wrong for lack of samples
        self.well_p = p  # success and seconds when it is itself again; differ while something is wrong
        self.well_s = mean_s
        self.until: float | None = None  # when its exclusion ends, where known
        self.index = 0.0


PROBE = "probe"
PANIC = ("ejected", PROBE, "full", "blocked")  # what is used when nothing else is left, in this order


@dataclass(frozen=True, slots=True)
class Ask:
    """The request's side of the choice: everything but the rows."""

    model: str
    operation: str
    images: int
    megapixels: float
    preset: str
    value_of_time: float  # nanos per second
    failure: float  # nanos that a failed attempt costs beside its money and time
    first: bool  # nothing has been tried yet
    order: tuple[str, ...]
    session: str | None  # target of the caller's session
    stay: float  # how much more, as a share, the session's target may cost
    explore: bool  # a look at something else is affordable
    optimism: float  # standard deviations by which a pace may be better than it seems
    follow: bool  # ... if only to follow up a surprise
    rate: float  # requests per second of this model
    change_every_s: float
    recover_every_s: float
    probe_every_s: float
    change_size: float
    draw: float | None  # uniform random number, where the choice needs one


def index(ask: Ask, price: int, p: float, mean_s: float, fail_s: float, bill: float) -> float:
    """Nanos that a success costs when this target is tried first."""
    lam = ask.value_of_time
    return price + lam * mean_s + (1.0 - p) / p * (bill * price + lam * fail_s + ask.failure)


def pick(rows: Sequence[Row], ask: Ask) -> tuple[Row | None, str]:
    """The row to use and the mode of the choice; (None, "none") if every row is out. Sets each row's index."""
    best: Row | None = None
    eligible = 0
    low = math.inf
    for row in rows:
        row.index = index(ask, row.price, row.p, row.mean_s, row.fail_s, row.bill)
        if row.why is None:
            eligible += 1
            hope = row.index - ask.value_of_time * row.mean_s * row.sd * ask.optimism if ask.first else row.index
            if best is None or hope < low:
                best, low = row, hope
    if best is None:
        return _panic(rows)
    if ask.order:
        for name in ask.order:
            for row in rows:
                if row.why is None and name in (row.target, row.provider):
                    return row, "order"
    if ask.preset == "weighted" or ask.preset == "priority":
        pool = [row for row in rows if row.why is None]
        if ask.preset == "priority":
            lowest = min(row.priority for row in pool)
            pool = [row for row in pool if row.priority == lowest]
        return _draw(pool, ask.draw or 0.0), ask.preset
    if ask.first:
        other = _explore(rows, ask, best)
        if other is not None:
            return other
        if ask.session is not None and best.target != ask.session:
            for row in rows:
                if row.target == ask.session and row.why is None and row.index <= best.index * (1.0 + ask.stay):
                    return row, "sticky"
    return best, "best" if eligible > 1 else "only"


def _explore(rows: Sequence[Row], ask: Ask, best: Row) -> tuple[Row, str] | None:
    """A target worth a look in place of the best, if there is one: due for a probe, or likely to have changed.

    Not looking costs, per request, what the target would save if it had changed, times the probability that it has,
    which grows while it is not heard of. A look is due when that loss, added up since the last one, exceeds what the
    look costs: the interval that minimises the sum of both.
    """
    found: Row | None = None
    most = 1.0
    for row in rows:
        if row is best or (row.why is not None and row.why != PROBE):
            continue
        if row.why == PROBE or row.well_s < row.mean_s:
            # Something is wrong there. The longer ago that was found, the likelier it has passed.
            well = index(ask, row.price, row.well_p, row.well_s, row.fail_s, row.bill)
            saves = best.index - well
            if row.why == PROBE:
                cost = row.bill * row.price + ask.value_of_time * row.fail_s
            elif not row.in_flight and (ask.explore or (ask.follow and row.doubt > 0.9)):
                cost = row.index - best.index
            else:
                continue
            unseen = row.unseen_s
            lost = ask.rate * saves * unseen * (row.doubt + 0.5 * unseen / ask.recover_every_s)
            if row.why == PROBE and row.unseen_s > ask.probe_every_s and well < best.index * 2.5:
                lost = cost * 2.0
            if lost / max(cost, 1.0) > most:
                found, most = row, lost / max(cost, 1.0)
            continue
        if row.in_flight or not (ask.explore or (ask.follow and row.doubt > 0.9)):
            continue
        strike = best.index - row.price
        if strike <= 0.0:
            continue
        spot = ask.value_of_time * row.mean_s
        unseen = min(row.unseen_s, ask.change_every_s)
        lost = ask.rate * unseen * (row.doubt + 0.5 * unseen / ask.change_every_s) * _put(strike, spot, ask.change_size)
        if row.sd > 0.1:
            lost += ask.rate * unseen * _put(strike, spot, row.sd)
        worth = lost / max(row.index - best.index, 0.005 * best.index)
        if worth > most:
            found, most = row, worth
    if found is None:
        return None
    return found, "probe" if found.why == PROBE else "explore"


def _put(strike: float, spot: float, sd: float) -> float:
    """What is saved on average if the pace is off by a log-normal factor: the value of a put option on the waiting."""
    d = math.log(strike / spot) / sd
    return strike * normal_cdf(d) - spot * math.exp(0.5 * sd * sd) * normal_cdf(d - sd)


def _draw(pool: Sequence[Row], draw: float) -> Row:
    total = sum(row.weight for row in pool)
    if total <= 0:
        return pool[min(int(draw * len(pool)), len(pool) - 1)]
    mark = draw * total
    for row in pool:
        mark -= row.weight
        if mark < 0:
            return row
    return pool[-1]


def _panic(rows: Sequence[Row]) -> tuple[Row | None, str]:
    """Everything is out. What is ejected, not merely unable, is used after all: the least bad of the mildest reason."""
    for reason in PANIC:
        pool = [row for row in rows if row.why is not None and row.why.partition(":")[0] == reason]
        if pool:
            return min(pool, key=lambda row: row.index), "panic"
    return None, "none"


def normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z * math.sqrt(0.5))
