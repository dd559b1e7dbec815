"""What one routing decision costs: ``python -m tests.benchmarks.decision_bench``.

Each decision is timed by itself between the events of a busy selector: every 0.3 s of virtual time a request comes,
one call ends, and so many calls are always in flight. The record is not asked for, as in the hot path.
"""

from __future__ import annotations

import gc
import random
import time
from collections import deque
from collections.abc import Sequence

from router.routing import Candidate, Outcome, RouteRequest, Selector

DECISIONS = 20_000


def measure(targets: int, in_flight: int, decisions: int = DECISIONS, seed: int = 1) -> list[float]:
    """Seconds of each decision, sorted."""
    rng = random.Random(seed)
    selector = Selector(random=random.Random(seed))
    candidates = tuple(Candidate(f"p{i}/m", f"p{i}", 5_000_000 + 900_000 * i, 10**8) for i in range(targets))
    requests = [
        RouteRequest("m", "generate", candidates, images, megapixels)
        for images in (1, 2, 4)
        for megapixels in (1.0, 2.0, 4.0)
    ]
    running: deque[str] = deque()
    taken: list[float] = []
    now = 0.0
    for step in range(decisions + 1000):
        now += 0.3
        request = rng.choice(requests)
        start = time.perf_counter()
        decision = selector.choose(request, now)
        took = time.perf_counter() - start
        if step >= 1000:  # the caches of interpreter and selector are warm
            taken.append(took)
        # Calls are spread over the targets: what is in flight counts, not what was chosen.
        target = decision.target if decision.target is not None and step % 2 else f"p{step % targets}/m"
        selector.on_start(target, request, now, str(step))
        running.append(str(step))
        if len(running) > in_flight:
            selector.on_end(running.popleft(), Outcome.success(rng.lognormvariate(1.2, 0.5)), now)
    return sorted(taken)


def percentile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def main() -> None:
    gc.disable()  # the collector's pauses belong to whoever allocates, and are the same for every decision
    print(f"{'targets':>8} {'in flight':>10} {'p50 us':>8} {'p99 us':>8}")
    for targets, in_flight in ((1, 5), (2, 10), (3, 15), (10, 50)):
        taken = measure(targets, in_flight)
        p50, p99 = 1e6 * percentile(taken, 0.5), 1e6 * percentile(taken, 0.99)
        print(f"{targets:>8} {in_flight:>10} {p50:>8.1f} {p99:>8.1f}")


if __name__ == "__main__":
    main()
