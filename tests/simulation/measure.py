"""What a run says about leaving a bad provider and coming back to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.simulation.engine import Run
from tests.simulation.world import END_S, FAULT_S, WARM_UP_S

RUN = 8  # first picks in a row elsewhere: it has been left
SHARE = 20  # first picks over which a share is taken


def former_share(run: Run, provider: int) -> float:
    """Share of the first picks between the warm-up and the fault."""
    before = [index for at, index in run.firsts if WARM_UP_S <= at < FAULT_S[0]]
    return before.count(provider) / max(len(before), 1)


def bad_picks(run: Run, provider: int) -> int:
    return sum(1 for at, index in run.firsts if index == provider and FAULT_S[0] <= at < FAULT_S[1])


def leave_s(run: Run, provider: int) -> float:
    """Seconds from the fault to the last first pick of the provider before eight in a row went elsewhere."""
    last, streak = FAULT_S[0], 0
    for at, index in run.firsts:
        if at < FAULT_S[0]:
            continue
        if index == provider:
            last, streak = at, 0
        else:
            streak += 1
            if streak == RUN:
                return last - FAULT_S[0]
    return math.inf


def return_s(run: Run, provider: int, since: float = FAULT_S[1], former: float | None = None) -> float:
    """Seconds from the recovery until the provider is picked and has, from there on, half its former share."""
    share = former_share(run, provider) if former is None else former
    firsts = [(at, index) for at, index in run.firsts if at >= since]
    for i, (at, index) in enumerate(firsts):
        window = firsts[i : i + SHARE]
        if index == provider and sum(1 for _, j in window if j == provider) >= 0.5 * share * len(window):
            return at - since
    return END_S - since


def percentile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))] if ordered else math.nan


def median(values: Sequence[float]) -> float:
    return percentile(values, 0.5)
