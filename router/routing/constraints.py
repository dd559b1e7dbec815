"""What is ruled out (names, tags, money, latency, success, model), and what would give the caller less than it asked.

Evaluated on this very request.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from router.routing.breaker import PROBE
from router.routing.policy import PANIC, Row
from router.routing.request import Candidate, Infeasible, RouteRequest
from router.routing.stats import Z95
from router.types import Preferences

NANOS = 1e9
FALLBACK = "fallback"  # why a target of another model than the one asked for is out: the first can serve it


class Miss(NamedTuple):
    """One constraint that a candidate fails: by what factor (infinite where there is no more or less) and in words."""

    factor: float
    name: str
    words: str


def constrain(request: RouteRequest, rows: Sequence[Row], tried: Sequence[str]) -> None:
    """Mark the rows that the constraints exclude; Infeasible if no capable candidate is left.

    The request's constraints and each candidate's ``limits`` must all be met. ``max_cost`` is held against the expected
    price of the request, ``max_latency_s`` against its p95 and ``min_success`` against the estimated success of one
    attempt.
    """
    preferences = request.preferences
    missed: list[tuple[Row, list[Miss]]] = []
    kept = 0
    for row, candidate in zip(rows, request.candidates, strict=True):
        if candidate.excluded is not None:
            continue
        layers = (preferences, *candidate.limits)
        misses = [miss for layer in layers for miss in _misses(row, candidate, layer)]
        if not misses:
            kept += 1
            continue
        misses.sort(key=lambda miss: -miss.factor)
        row.why = misses[0].name
        missed.append((row, misses))
    if missed and not kept:
        raise _infeasible(missed)
    if any(candidate.rank for candidate in request.candidates):
        _first_model(request, rows)
    if not preferences.allow_fallbacks:
        for row, candidate in zip(rows, request.candidates, strict=True):
            named = row.target in preferences.order or row.provider in preferences.order
            if row.why is None and (not named if preferences.order else bool(tried) or candidate.rank > 0):
                row.why = "no_fallbacks"


def prefer_whole(request: RouteRequest, rows: Sequence[Row]) -> None:
    """Leave out the targets that would deliver less than was asked, while one that delivers all can take the request.

    What the caller names in its order stays: it knows what it wants more. As a reason of exclusion and no factor of
    the score, this holds whatever the prices are, gives way when the others are down, and stands in the record.
    """
    if not any(row.why is None and row.target not in request.lesser for row in rows):
        return
    order = request.preferences.order
    for row in rows:
        if row.why in (None, PROBE) and row.target in request.lesser and not {row.target, row.provider} & set(order):
            row.why = "lesser"


def _first_model(request: RouteRequest, rows: Sequence[Row]) -> None:
    """Leave another model's targets out while one of the model asked for can serve, or would be used in need."""
    ranks = [candidate.rank for candidate in request.candidates]
    able = [rank for rank, row in zip(ranks, rows, strict=True) if row.why is None]
    if not able:
        able = [
            rank for rank, row in zip(ranks, rows, strict=True) if row.why is not None and row.why.startswith(PANIC)
        ]
    lowest = min(able, default=0)
    for rank, row in zip(ranks, rows, strict=True):
        if rank > lowest and (row.why is None or row.why == PROBE or row.why.startswith(PANIC)):
            row.why = FALLBACK


def _infeasible(missed: Sequence[tuple[Row, list[Miss]]]) -> Infeasible:
    def distance(item: tuple[Row, list[Miss]]) -> tuple[int, float]:
        closed = sum(math.isinf(miss.factor) for miss in item[1])
        return closed, max((miss.factor for miss in item[1] if not math.isinf(miss.factor)), default=0.0)

    row, misses = min(missed, key=distance)
    words = ", ".join(f"{miss.words} ({miss.name})" for miss in misses)
    return Infeasible(
        f"No provider meets the constraints. The nearest is {row.target}, which {words}.",
        row.target,
        tuple(miss.name for miss in misses),
        {other.target: tuple(miss.name for miss in its) for other, its in missed},
    )


def _misses(row: Row, candidate: Candidate, wanted: Preferences) -> Iterator[Miss]:
    names = (row.target, row.provider)
    if wanted.only and not any(name in wanted.only for name in names):
        yield Miss(math.inf, "only", f"is not among {', '.join(wanted.only)}")
    if any(name in wanted.ignore for name in names):
        yield Miss(math.inf, "ignore", "is to be ignored")
    for tag in wanted.require_tags:
        if tag not in candidate.tags:
            yield Miss(math.inf, "require_tags", f"is not tagged {tag}")
    for tag in wanted.exclude_tags:
        if tag in candidate.tags:
            yield Miss(math.inf, "exclude_tags", f"is tagged {tag}")
    if wanted.max_cost is not None:
        limit = int(wanted.max_cost.scaleb(9))
        if row.price > limit:
            words = f"would cost ${row.price / NANOS:.6g}, more than ${wanted.max_cost:f}"
            yield Miss(row.price / max(limit, 1), "max_cost", words)
    if wanted.max_latency_s is not None:
        p95 = math.exp(row.ln_median + Z95 * row.sigma)
        if p95 > wanted.max_latency_s:
            words = f"takes up to {p95:.3g} s (p95), more than {wanted.max_latency_s:g} s"
            yield Miss(p95 / max(wanted.max_latency_s, 1e-9), "max_latency_s", words)
    if wanted.min_success is not None and row.p < wanted.min_success:
        words = f"succeeds in {row.p:.1%} of attempts, fewer than {wanted.min_success:.1%}"
        yield Miss(wanted.min_success / max(row.p, 1e-9), "min_success", words)
