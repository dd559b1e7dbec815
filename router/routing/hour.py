"""What the last hour measured of one target doing one operation, as it came: for people, no choice rests on it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

from router.routing.request import Result
from router.routing.sketch import P95_SAMPLES, Histogram, Window, wilson
from router.routing.work import Kind, Work, kind_name

CLASSES = 64  # work classes kept
PHASES = ("submitted", "queued", "first_byte")
# As results are told. New words go to the end, or routers of two versions misread each other.
_NUMBER = {result: number for number, result in enumerate(Result)}
_NAMES = [result.value for result in Result]
_GOOD, _BAD = _NUMBER[Result.SUCCESS], _NUMBER[Result.FAILURE]
RESULTS = len(_NUMBER)


class _Measured:
    """How attempts ended and how long the successes took."""

    __slots__ = ("results", "seconds")

    def __init__(self) -> None:
        self.results = Window()  # counted by the result's number in place of a bucket
        self.seconds = Window()


class Hour:
    """Seconds by phase and by class of work, and how attempts ended, here and at the routers that share.

    Failures, refusals, faults of the request, cancellations, rate limits and blocked accounts are counted apart; the
    success rate is that of successes and failures alone.
    """

    __slots__ = ("_classes", "_phases")

    def __init__(self) -> None:
        self._phases: dict[str, Window] = {}
        self._classes: dict[Kind | None, _Measured] = {}  # None: of all classes that are too many

    def reached(self, phase: str, seconds: float, now: float) -> None:
        """An attempt reached one of ``PHASES`` after so many seconds; any other word is ignored."""
        if phase in PHASES:
            self._phase(phase).add(Histogram.bucket(seconds), now)

    def ended(self, result: Result, seconds: float, work: Work, now: float) -> None:
        measured = self._class(work.kind)
        measured.results.add(_NUMBER[result], now)
        if result is Result.SUCCESS:
            measured.seconds.add(Histogram.bucket(seconds), now)

    def _phase(self, phase: str) -> Window:
        window = self._phases.get(phase)
        if window is None:
            window = self._phases[phase] = Window()
        return window

    def _class(self, kind: Kind | None) -> _Measured:
        measured = self._classes.get(kind)
        if measured is None:
            if len(self._classes) >= CLASSES:
                kind = None
            measured = self._classes.setdefault(kind, _Measured())
        return measured

    def told(self, now: float) -> dict[str, Any] | None:
        """What was measured here since the last call, for ``hear``, JSON-ready; None if nothing was."""
        phases = {phase: told for phase, window in self._phases.items() if (told := window.told(now))}
        classes = [
            (kind, told, measured.seconds.told(now))
            for kind, measured in self._classes.items()
            if (told := measured.results.told(now))
        ]
        return {"phases": phases, "classes": classes} if phases or classes else None

    def hear(self, told: Mapping[str, Any], now: float) -> None:
        """Add what another router told at ``now``. The order makes no difference, except for which classes are shown
        where there are too many."""
        for phase, seconds in told["phases"].items():
            self._phase(phase).hear(seconds, now)
        for kind, results, seconds in told["classes"]:
            measured = self._class(None if kind is None else (kind[0], kind[1], kind[2]))
            measured.results.hear(results, now)
            measured.seconds.hear(seconds, now)

    def snapshot(self, now: float, median_s: Callable[[Kind], float]) -> Generator[None, None, dict[str, Any]]:
        """JSON-ready. Intervals are Wilson's, of 95 %; ``p95_sure`` is false under 59 samples.

        ``median_s`` is what the next request of a class is reckoned with: where the class has few samples of its own,
        that rests on all sizes and on all of the model's targets.

        All classes together take milliseconds: it yields after each, so that a caller can serve others in between.
        What comes in meanwhile is counted, or not yet.
        """
        results, seconds = Histogram(), Histogram()
        classes: dict[Kind, dict[str, Any]] = {}
        for kind, measured in list(self._classes.items()):
            its = measured.results.read(now), measured.seconds.read(now)
            results.merge(its[0])
            seconds.merge(its[1])
            if kind is not None:
                classes[kind] = {"reckoned_p50_s": round(median_s(kind), 4), **_ended(*its)}
            yield
        return {
            **_ended(results, seconds),
            "phases": {name: _seconds(self._phases[name].read(now)) for name in PHASES if name in self._phases},
            "classes": {
                kind_name(kind): classes[kind] for kind in sorted(classes, key=lambda kind: (*kind[:2], kind[2] or ""))
            },
        }


def _ended(results: Histogram, seconds: Histogram) -> dict[str, Any]:
    good, bad = results.counts.get(_GOOD, 0), results.counts.get(_BAD, 0)
    n = good + bad
    low, high = wilson(good, n)
    return {
        **_seconds(seconds),
        "success": round(good / n, 5) if n else None,
        "success_low": round(low, 5),
        "success_high": round(high, 5),
        "results": {_NAMES[number]: results.counts[number] for number in sorted(results.counts)},
    }


def _seconds(seen: Histogram) -> dict[str, Any]:
    p50, p95 = seen.quantiles(0.5, 0.95)
    return {
        "n": seen.n,
        "p50_s": round(p50, 4) if p50 is not None else None,
        "p95_s": round(p95, 4) if p95 is not None else None,
        "p95_sure": seen.n >= P95_SAMPLES,
    }
