"""What the last hour measured of one target doing one operation, as it came: for people, no choice rests on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from router.routing.request import Result
from router.routing.sketch import P95_SAMPLES, Histogram, Window, wilson
from router.routing.work import Kind, Work, kind_name

CLASSES = 64  # work classes kept
PHASES = ("submitted", "queued", "first_byte")
_RESULTS: Sequence[Result] = tuple(Result)
_NUMBER = {result: i for i, result in enumerate(_RESULTS)}


class _Measured:
    """How attempts ended and how long the successes took."""

    __slots__ = ("results", "seconds")

    def __init__(self) -> None:
        self.results = Window()  # counted by the result's number in place of a bucket
        self.seconds = Window()

    def snapshot(self, now: float) -> dict[str, Any]:
        counts = self.results.read(now).counts
        results = {result.value: counts.get(i, 0) for i, result in enumerate(_RESULTS)}
        good = results[Result.SUCCESS]
        n = good + results[Result.FAILURE]
        low, high = wilson(good, n)
        return {
            **_seconds(self.seconds, now),
            "success": round(good / n, 5) if n else None,
            "success_low": round(low, 5),
            "success_high": round(high, 5),
            "results": {name: count for name, count in results.items() if count},
        }


class Hour:
    """Seconds by phase and by class of work, and how attempts ended.

    Failures, refusals, faults of the request, cancellations, rate limits and blocked accounts are counted apart; the
    success rate is that of successes and failures alone.
    """

    __slots__ = ("_all", "_classes", "_phases")

    def __init__(self) -> None:
        self._all = _Measured()
        self._phases: dict[str, Window] = {}
        self._classes: dict[Kind, _Measured] = {}

    def reached(self, phase: str, seconds: float, now: float) -> None:
        """An attempt reached one of ``PHASES`` after so many seconds; any other word is ignored."""
        if phase in PHASES:
            window = self._phases.get(phase)
            if window is None:
                window = self._phases[phase] = Window()
            window.add(Histogram.bucket(seconds), now)

    def ended(self, result: Result, seconds: float, work: Work, now: float) -> None:
        measured = self._classes.get(work.kind)
        if measured is None and len(self._classes) < CLASSES:
            measured = self._classes[work.kind] = _Measured()
        number = _NUMBER[result]
        self._all.results.add(number, now)
        if measured is not None:
            measured.results.add(number, now)
        if result is Result.SUCCESS:
            bucket = Histogram.bucket(seconds)
            self._all.seconds.add(bucket, now)
            if measured is not None:
                measured.seconds.add(bucket, now)

    def snapshot(self, now: float, median_s: Callable[[Kind], float]) -> dict[str, Any]:
        """JSON-ready. Intervals are Wilson's, of 95 %; ``p95_sure`` is false under 59 samples.

        ``median_s`` is what the next request of a class is reckoned with: where the class has few samples of its own,
        that rests on all sizes and on all of the model's targets.
        """
        return {
            **self._all.snapshot(now),
            "phases": {name: _seconds(self._phases[name], now) for name in PHASES if name in self._phases},
            "classes": {
                kind_name(kind): {"reckoned_p50_s": round(median_s(kind), 4), **self._classes[kind].snapshot(now)}
                for kind in sorted(self._classes, key=lambda kind: (*kind[:2], kind[2] or ""))
            },
        }


def _seconds(window: Window, now: float) -> dict[str, Any]:
    seen = window.read(now)
    p50, p95 = seen.quantile(0.5), seen.quantile(0.95)
    return {
        "n": seen.n,
        "p50_s": round(p50, 4) if p50 is not None else None,
        "p95_s": round(p95, 4) if p95 is not None else None,
        "p95_sure": seen.n >= P95_SAMPLES,
    }
