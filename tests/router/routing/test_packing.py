"""What the ledger keeps of a decision is the whole of it."""

from __future__ import annotations

import random

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from router.routing import Candidate, Outcome, RouteRequest, Selector, pack, replay, unpack


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), targets=st.integers(1, 10), steps=st.integers(0, 30))
def test_a_packed_decision_is_the_same_decision(seed, targets, steps):
    rng = random.Random(seed)
    selector = Selector(random=random.Random(seed))
    candidates = tuple(
        Candidate(
            f"p{i}/m", f"p{i}", rng.randrange(10**6, 10**8), 10**9, excluded="size" if rng.random() < 0.1 else None
        )
        for i in range(targets)
    )
    request = RouteRequest("m", "generate", candidates, images=rng.randrange(1, 5), megapixels=rng.random() * 4 + 0.1)
    now = 1000.0
    for step in range(steps):
        decision = selector.choose(request, now)
        if decision.target is None:
            break
        selector.on_start(decision.target, request, now, str(step))
        now += rng.expovariate(0.2)
        ended = Outcome.success() if rng.random() < 0.8 else Outcome.failure()
        selector.on_end(str(step), ended, now)
    decision = selector.choose(request, now)
    stored = orjson.dumps(pack(decision))
    again = unpack(orjson.loads(stored))
    assert (again.target, again.mode, again.reason) == (decision.target, decision.mode, decision.reason)
    assert again.record() == decision.record()
    assert replay(again.record()) == (decision.target, decision.mode)
    assert len(stored) <= 4096
