"""What one routing decision costs: ``python -m tests.benchmarks.decision_bench``.

Each decision is timed by itself between the events of a busy selector. Calls last as long as the selector is told they
do, and requests come as fast as that takes to keep so many in flight, spread over all targets. The record is not asked
for, as in the hot path. The same decisions are made several times and each counts with its least time: what is left out
is what else the machine was doing. Machines differ: beside microseconds stands the multiple of a plain loop's time.
"""

from __future__ import annotations

import gc
import heapq
import math
import random
import time
from collections.abc import Sequence

from router.routing import Candidate, Outcome, RouteRequest, Selector

DECISIONS = 5000
REPEATS = 5
LN_CALL_S, SIGMA = 1.2, 0.5  # how long calls last: log-normal


def measure(targets: int, in_flight: int, decisions: int = DECISIONS, repeats: int = REPEATS) -> list[float]:
    """Seconds of each decision, sorted."""
    return sorted(
        min(times) for times in zip(*(_run(targets, in_flight, decisions) for _ in range(repeats)), strict=True)
    )


def _run(targets: int, in_flight: int, decisions: int, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    selector = Selector(random=random.Random(seed))
    candidates = tuple(Candidate(f"p{i}/m", f"p{i}", 5_000_000 + 900_000 * i, 10**8) for i in range(targets))
    requests = [
        RouteRequest("m", "generate", candidates, images, megapixels)
        for images in (1, 2, 4)
        for megapixels in (1.0, 2.0, 4.0)
    ]
    gap_s = math.exp(LN_CALL_S + 0.5 * SIGMA**2) / in_flight
    running: list[tuple[float, str]] = []
    taken: list[float] = []
    now = 0.0
    for step in range(decisions + 1000):
        now += rng.expovariate(1.0 / gap_s)
        while running and running[0][0] <= now:
            end, attempt = heapq.heappop(running)
            selector.on_end(attempt, Outcome.success(), end)
        request = rng.choice(requests)
        start = time.perf_counter()
        decision = selector.choose(request, now)
        took = time.perf_counter() - start
        if step >= 1000:  # the caches of interpreter and selector are warm
            taken.append(took)
        # Calls are spread over the targets: what is in flight counts, not what was chosen.
        target = decision.target if decision.target is not None and step % 2 else f"p{step % targets}/m"
        selector.on_start(target, request, now, str(step))
        heapq.heappush(running, (now + rng.lognormvariate(LN_CALL_S, SIGMA), str(step)))
    return taken


def loop() -> float:
    """Seconds that a plain loop of a hundred multiplications and additions takes here, now: the least of many."""
    best = math.inf
    for _ in range(2000):
        start = time.perf_counter()
        x = 0.0
        for i in range(100):
            x = x * 0.5 + i
        best = min(best, time.perf_counter() - start)
    return best


def percentile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def main() -> None:
    gc.disable()  # the collector's pauses belong to whoever allocates, and are the same for every decision
    print(f"{'targets':>8} {'in flight':>10} {'p50 us':>8} {'p99 us':>8} {'p50 in loops':>13}")
    for targets, in_flight in ((1, 5), (2, 10), (3, 15), (10, 50)):
        taken, unit = measure(targets, in_flight), loop()
        p50, p99 = percentile(taken, 0.5), percentile(taken, 0.99)
        print(f"{targets:>8} {in_flight:>10} {1e6 * p50:>8.1f} {1e6 * p99:>8.1f} {p50 / unit:>13.1f}")


if __name__ == "__main__":
    main()
