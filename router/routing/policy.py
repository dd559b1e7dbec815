"""The choice itself, as a pure function: rows and an ask in, one row and the reason for it out.

One index decides: the expected dollars and waiting until a success, trying in turn until one works,

    price + lambda T + (1 - p) / p x (b price + lambda F)

with p the probability of success, T and F the expected seconds of a success and of a failure, b the probability that
a failure is billed and lambda the dollars that a second is worth. Amounts are nanos of a dollar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


class Row:
    """One candidate as it stood at the moment of the decision: everything that the choice depends on."""

    __slots__ = (
        "bill",
        "cap",
        "fail_s",
        "hope_p",
        "hope_s",
        "in_flight",
        "index",
        "ln_median",
        "mean_s",
        "n",
        "p",
        "price",
        "priority",
        "provider",
        "sigma",
        "target",
        "unseen_s",
        "until",
        "weight",
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
        unseen_s: float,
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
        self.unseen_s = unseen_s  # since it was last heard of
        self.in_flight = in_flight
        self.why = why  # None: eligible; PROBE: due for one; else the reason of its exclusion
        self.weight = weight
        self.priority = priority
        self.hope_p = p  # optimistic p and mean_s, for exploring and probing
        self.hope_s = mean_s
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
    fail_value: float  # nanos that a lost request costs
    aversion: float  # nanos that a failed attempt costs beside its money and time
    first: bool  # nothing has been tried yet
    last: bool  # nothing is allowed after this attempt
    order: tuple[str, ...]
    session: str | None  # target of the caller's session
    stay: float  # how much more, as a share, the session's target may cost
    explore: bool  # a look at something else is affordable
    fence: float
    doubt_s: float
    stale_s: float
    draw: float | None  # uniform random number, where the choice needs one


def index(ask: Ask, price: int, p: float, mean_s: float, fail_s: float, bill: float) -> float:
    """Nanos that a success costs when this target is tried first."""
    lam = ask.value_of_time
    if ask.last:
        return p * (price + lam * mean_s) + (1.0 - p) * (bill * price + lam * fail_s + ask.fail_value)
    return price + lam * mean_s + (1.0 - p) / p * (bill * price + lam * fail_s + ask.aversion)


def pick(rows: Sequence[Row], ask: Ask) -> tuple[Row | None, str]:
    """The row to use and the mode of the choice; (None, "none") if every row is out. Sets each row's index."""
    best: Row | None = None
    eligible = 0
    for row in rows:
        row.index = index(ask, row.price, row.p, row.mean_s, row.fail_s, row.bill)
        if row.why is None:
            eligible += 1
            if best is None or row.index < best.index:
                best = row
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
    """A target worth a look in place of the best: due for a probe, new, in doubt, or long unheard of."""
    stalest: Row | None = None
    for row in rows:
        if row is best or (row.why is not None and row.why != PROBE):
            continue
        hope = index(ask, row.price, row.hope_p, row.hope_s, row.fail_s, row.bill)
        if row.why == PROBE:
            if hope < best.index or (row.unseen_s >= ask.stale_s and hope <= best.index * ask.fence):
                return row, "probe"
        elif ask.explore and row.in_flight == 0 and (stalest is None or row.unseen_s > stalest.unseen_s):
            doubtful = row.unseen_s >= ask.doubt_s and hope < best.index
            stale = row.unseen_s >= ask.stale_s and row.index <= best.index * ask.fence
            if doubtful or stale:
                stalest = row
    return (stalest, "explore") if stalest is not None else None


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
