"""What the caller rules out: names, tags, money, latency, success, fallbacks. Evaluated on this very request."""

from __future__ import annotations

import math
from collections.abc import Sequence

from router.routing.policy import Row
from router.routing.request import Infeasible, RouteRequest
from router.routing.stats import Z95
from router.types import Preferences

NANOS = 1e9


def constrains(preferences: Preferences) -> bool:
    """Whether the preferences rule anything out (an order and a sort do not)."""
    return bool(
        preferences.only
        or preferences.ignore
        or preferences.max_cost is not None
        or preferences.max_latency_s is not None
        or preferences.min_success is not None
        or not preferences.allow_fallbacks
    )


def constrain(request: RouteRequest, rows: Sequence[Row], tried: Sequence[str]) -> None:
    """Mark the rows that the constraints exclude; Infeasible if no capable candidate is left.

    ``max_cost`` is held against the expected price of the request, ``max_latency_s`` against its p95 and
    ``min_success`` against the estimated success of one attempt.
    """
    preferences = request.preferences
    capable = [row for row, candidate in zip(rows, request.candidates, strict=True) if candidate.excluded is None]
    missed: list[tuple[float, Row, str, str]] = []
    kept = 0
    for row in capable:
        miss = _miss(row, preferences)
        if miss is None:
            kept += 1
        else:
            missed.append((miss[0], row, miss[1], miss[2]))
    for _, row, name, _ in missed:
        row.why = name
    if capable and not kept:
        _, row, name, words = min(missed, key=lambda item: item[0])
        raise Infeasible(f"No provider meets the constraints; {row.target} {words} ({name}).", row.target, name)
    if not preferences.allow_fallbacks:
        for row in rows:
            named = row.target in preferences.order or row.provider in preferences.order
            if row.why is None and (not named if preferences.order else bool(tried)):
                row.why = "no_fallbacks"


def _miss(row: Row, preferences: Preferences) -> tuple[float, str, str] | None:
    """By what factor, on which filter and in which words the row fails; None if it passes. The worst miss counts."""
    names = (row.target, row.provider)
    if preferences.only and not any(name in preferences.only for name in names):
        return math.inf, "only", f"is not among {', '.join(preferences.only)}"
    if any(name in preferences.ignore for name in names):
        return math.inf, "ignore", "is to be ignored"
    misses: list[tuple[float, str, str]] = []
    if preferences.max_cost is not None:
        limit = float(preferences.max_cost) * NANOS
        if row.price > limit:
            misses.append((row.price / max(limit, 1.0), "max_cost", f"would cost ${row.price / NANOS:.6g}"))
    if preferences.max_latency_s is not None:
        p95 = math.exp(row.ln_median + Z95 * row.sigma)
        if p95 > preferences.max_latency_s:
            ratio = p95 / max(preferences.max_latency_s, 1e-9)
            misses.append((ratio, "max_latency_s", f"takes up to {p95:.3g} s (p95)"))
    if preferences.min_success is not None and row.p < preferences.min_success:
        misses.append((preferences.min_success / row.p, "min_success", f"succeeds in {row.p:.1%} of attempts"))
    return max(misses, key=lambda miss: miss[0], default=None)
