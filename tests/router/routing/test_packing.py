"""What the ledger keeps of a decision is the whole of it."""

from __future__ import annotations

import asyncio
import random

import apsw
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from router.ledger import Ledger, Opening
from router.routing import Candidate, Outcome, RouteRequest, Selector, pack, replay, unpack
from router.routing.policy import pick
from router.types import Preferences
from tests.router.ledger.builders import opening


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


def test_ten_thousand_decisions_as_the_ledger_keeps_them(tmp_path):
    """Every choice follows again from what is stored, which is small and says why every other target lost."""
    rng = random.Random(5)
    selector = Selector(random=random.Random(6))
    shut = ("size", "only", "max_cost")
    requests = [
        RouteRequest(
            "flux.2-dev-turbo",
            "generate",
            tuple(
                Candidate(
                    f"provider-{i}/flux.2-dev-turbo",
                    f"provider-{i}",
                    rng.randrange(10**6, 10**8),
                    10**9,
                    excluded=rng.choice(shut) if rng.random() < 0.1 else None,
                )
                for i in range(10)
            ),
            images=rng.randrange(1, 5),
            megapixels=rng.random() * 4,
            preferences=Preferences(sort=rng.choice(("balanced", "fastest", "cheapest", "reliable", "weighted"))),
        )
        for _ in range(100)
    ]
    stored: list[Opening] = []
    now = 1000.0
    running: list[tuple[float, str]] = []
    for number in range(10_000):
        request = rng.choice(requests)
        while running and running[0][0] <= now:
            ended = rng.random()
            outcome = (
                Outcome.success() if ended < 0.8 else Outcome.failure() if ended < 0.97 else Outcome.rate_limited(9.0)
            )
            at, name = running.pop(0)
            selector.on_end(name, outcome, at)
        decision = selector.choose(request, now)
        if decision.target is not None:
            selector.on_start(decision.target, request, now, str(number))
            running.append((now + rng.uniform(1.0, 60.0), str(number)))
            running.sort()
        stored.append(opening(str(number), decision=pack(decision)))
        now += rng.expovariate(1.0)

    async def keep() -> None:
        async with Ledger(tmp_path / "ledger.db", reserve_bytes=0) as ledger:
            await asyncio.gather(*(ledger.open(one) for one in stored))

    asyncio.run(keep())
    found = apsw.Connection(str(tmp_path / "ledger.db")).execute("SELECT id, decision FROM attempt").fetchall()
    assert len(found) == 10_000
    modes = set()
    for number, text in found:
        packed = orjson.loads(text)
        decision = unpack(packed)
        modes.add(decision.mode)
        assert len(text.encode()) <= 4096
        row, mode = pick(decision.rows, decision.ask)
        assert (row and row.target, mode) == (packed["chosen"], packed["mode"])
        if int(number) % 20 == 0:  # the readable record is made when somebody asks
            record = decision.record()
            assert len(orjson.dumps(record)) <= 4096
            assert replay(record) == (packed["chosen"], packed["mode"])
            losers = [one for one in record["candidates"] if one["target"] != packed["chosen"]]
            assert all("why" in one or "lost_by" in one for one in losers)
    assert {"best", "explore", "probe", "weighted"} <= modes
