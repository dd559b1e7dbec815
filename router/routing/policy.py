"""The choice itself, as pure functions: rows and an ask in, one row and the mode of the choice out.

One index decides: the expected dollars and waiting until a success, trying in turn until one works,

    price + lambda T + (1 - p) / p x (b price + lambda F + failure)

with p the probability of success, T and F the expected seconds of a success and of a failure, b the probability that
a failure is billed, lambda the dollars that a second is worth, and ``failure`` what a failed attempt costs beside: on
the last attempt what a lost request costs, before that what the preset says. Amounts are nanos of a dollar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from router.routing.breaker import PROBE

SQRT_HALF = math.sqrt(0.5)
PANIC = ("ejected", PROBE, "full", "blocked")  # what is used when nothing else is left, the mildest reason first
BY_SHARE = ("weighted", "priority")  # presets that draw by weight


class Row:
    """One candidate as it stood at the moment of the decision: everything that the choice depends on."""

    __slots__ = (
        "assumed",
        "bill",
        "fail_s",
        "ill",
        "in_flight",
        "index",
        "limit_s",
        "ln_median",
        "mean_s",
        "n",
        "off",
        "off_sd",
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
        sd: float,
        n: float,
        unseen_s: float,
        off: float,
        off_sd: float,
        in_flight: int,
        why: str | None,
        weight: float,
        priority: int,
        limit_s: float,
        assumed: float,
        ill: float,
        well_p: float,
        well_s: float,
    ) -> None:
        self.target = target
        self.provider = provider
        self.price = price  # nanos
        self.p = p  # probability of success, within the limit
        self.mean_s = mean_s  # expected seconds of a success
        self.fail_s = fail_s  # expected seconds of a failure
        self.bill = bill  # probability that a failure is billed
        self.ln_median = ln_median
        self.sigma = sigma
        self.sd = sd  # uncertainty of the pace, in log-seconds
        self.n = n  # recent outcomes that the estimate rests on
        self.unseen_s = unseen_s  # since it was last heard of
        self.off = off  # probability that it is slower or faster than it usually is
        self.off_sd = off_sd  # uncertainty of its pace then, in log-seconds
        self.in_flight = in_flight
        self.why = why  # None: eligible; PROBE: due for one; else the reason of its exclusion
        self.weight = weight
        self.priority = priority
        self.limit_s = limit_s  # an attempt is given up after this long
        self.assumed = assumed  # share of its calls of which it is only assumed that they fail
        self.ill = ill  # probability that it fails more often than it usually does
        self.well_p = well_p  # success and seconds when it is itself again; they differ while something is wrong
        self.well_s = well_s
        self.until: float | None = None  # when its exclusion ends, where known
        self.index = 0.0


@dataclass(slots=True)
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
    draw: float | None  # uniform random number, where the choice needs one
    toll: float  # nanos that a look costs beyond its own cost; infinite if none is affordable
    optimism: float  # standard deviations by which a pace may be better than it seems
    typical: float  # nanos: the running mean of the index; a look is cheaper on a smaller request
    rate: float  # requests per second of this model
    change_every_s: float
    recover_every_s: float
    probe_every_s: float


def normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z * SQRT_HALF)


def pick(rows: Sequence[Row], ask: Ask) -> tuple[Row | None, str]:
    """The row to use and the mode of the choice; (None, "none") if every row is out. Sets each row's index."""
    lam, failure = ask.value_of_time, ask.failure
    optimism = ask.optimism if ask.first else 0.0
    best: Row | None = None
    low = math.inf
    eligible = 0
    for row in rows:
        p, price, waiting = row.p, row.price, lam * row.mean_s
        lost = row.bill * price + lam * row.fail_s + failure
        row.index = price + waiting + (1.0 - p) / p * lost
        if row.why is None:
            eligible += 1
            # How good it may well be: quicker than it seems, and without the failures that were only assumed.
            hope = row.index
            if optimism:
                hope -= optimism * waiting * row.sd + row.assumed / p * lost
            if hope < low:
                best, low = row, hope
    if best is None:
        return _panic(rows)
    for name in ask.order:
        for row in rows:
            if row.why is None and name in (row.target, row.provider):
                return row, "order"
    if ask.preset in BY_SHARE:
        pool = [row for row in rows if row.why is None]
        if ask.preset == "priority":
            lowest = min(row.priority for row in pool)
            pool = [row for row in pool if row.priority == lowest]
        return _draw(pool, ask.draw or 0.0), ask.preset
    if ask.first and len(rows) > 1:
        look = _look(rows, ask, best)
        if look is not None:
            return look, "probe" if look.why == PROBE else "explore"
        if ask.session is not None and best.target != ask.session:
            for row in rows:
                if row.target == ask.session and row.why is None and row.index <= best.index * (1.0 + ask.stay):
                    return row, "sticky"
    return best, "best" if eligible > 1 else "only"


def _look(rows: Sequence[Row], ask: Ask, best: Row) -> Row | None:
    """The target that most deserves this request for the sake of what it would tell, if any does.

    Not looking costs, with every request, what the target would save if it were better than it seems, times the
    probability that it is; that probability grows while it is not heard of. A look is due when this loss, added up
    since the last one, exceeds what the look costs: the interval that makes the sum of both least.
    """
    found: Row | None = None
    most = 0.0
    low, toll = best.index, ask.toll
    typical = ask.typical / low if ask.typical > 0.0 else 1.0  # later requests, in units of this one
    for row in rows:
        if row.why is None:
            if row is best or row.in_flight or toll == math.inf:
                continue
            cost = row.index - low + toll
            loss = _better(row, ask, low, (cost + most) / typical)
        elif row.why == PROBE:
            loss = _trouble_over(row, ask, low)
            cost = row.bill * row.price + ask.value_of_time * row.fail_s + ask.failure
            if row.unseen_s > ask.probe_every_s and loss > 0.0:
                loss = math.inf
        else:
            continue
        if loss * typical - cost > most:
            found, most = row, loss * typical - cost
    return found


def _trouble_over(row: Row, ask: Ask, best: float) -> float:
    """Nanos lost by now by not looking whether a target that failed is itself again.

    It came back at some moment since it was last heard of, on average half-way: t x t / 2 over the usual time. How
    quick it is then may be known badly, as of one that hung from its first call on: so the saving is an option's. It
    has its own pace then, or the other one that it had before it failed.
    """
    strike, lam = _strike(row, ask, best), ask.value_of_time
    if strike <= 0.0:
        return 0.0
    saves = _put(strike, lam * row.well_s, row.sd) if lam > 0.0 else strike
    if row.off > 0.0 and lam > 0.0:
        saves = max(saves, row.off * _put(strike, lam * _off_s(row), row.off_sd))
    return ask.rate * saves * row.unseen_s * row.unseen_s * 0.5 / ask.recover_every_s


def _strike(row: Row, ask: Ask, best: float) -> float:
    """Nanos that its waiting may cost for a target, if it is itself, to be as good as the best."""
    p = row.well_p
    return best - row.price - (1.0 - p) / p * (row.bill * row.price + ask.value_of_time * row.fail_s + ask.failure)


def _better(row: Row, ask: Ask, best: float, enough: float) -> float:
    """Nanos lost by now by not looking whether a target is better than it seems.

    With every request since it was last heard of, what it would save on average if it is itself, and if it is off,
    each with its odds. Zero if that cannot exceed ``enough``, which is found out by bounds before the costly parts.
    """
    price, lam = row.price, ask.value_of_time
    unseen = row.unseen_s if row.unseen_s < ask.change_every_s else ask.change_every_s
    requests = ask.rate * unseen * (1.0 - row.ill)
    if requests * (best - price) <= enough or lam <= 0.0:
        return 0.0
    strike = _strike(row, ask, best)
    if requests * strike <= enough:
        return 0.0
    # It may be off for a while; and the longer it is not heard of, the likelier it has changed for good meanwhile.
    off, well_s = row.off, row.well_s
    changed = off + (1.0 - off) * 0.5 * unseen / ask.change_every_s
    saves = (1.0 - changed) * _put(strike, lam * well_s, row.sd)
    if requests * (saves + changed * strike) <= enough:
        return 0.0
    if off > 0.0:
        saves += changed * _put(strike, lam * _off_s(row), row.off_sd)
    return requests * saves


def _off_s(row: Row) -> float:
    """Expected seconds of a success while it is slower or faster than it usually is."""
    return row.well_s + (row.mean_s - row.well_s) / row.off


def _put(strike: float, waiting: float, sd: float) -> float:
    """What is saved on average if the waiting is off by a log-normal factor: the value of a put option on it."""
    if sd < 1e-3:
        return max(strike - waiting, 0.0)
    d = math.log(strike / waiting) / sd + 0.5 * sd
    if d < -4.0:
        return 0.0
    return strike * 0.5 * math.erfc(-d * SQRT_HALF) - waiting * 0.5 * math.erfc((sd - d) * SQRT_HALF)


def _draw(pool: Sequence[Row], draw: float) -> Row:
    total = sum(row.weight for row in pool)
    if total <= 0.0:
        return pool[min(int(draw * len(pool)), len(pool) - 1)]
    mark = draw * total
    for row in pool:
        mark -= row.weight
        if mark < 0.0:
            return row
    return pool[-1]


def _panic(rows: Sequence[Row]) -> tuple[Row | None, str]:
    """Everything is out. What is ejected, not merely unable, is used after all: the least bad of the mildest reason."""
    for reason in PANIC:
        pool = [row for row in rows if row.why is not None and row.why.partition(":")[0] == reason]
        if pool:
            return min(pool, key=lambda row: row.index), "panic"
    return None, "none"
