"""Replicas that learn from each other through a real server, and go on without it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import sharing
from router.drains import Drains
from router.routing import Candidate, Outcome, Result, RouteRequest, RoutingSettings, Sample, Selector
from router.sharing import Sharing, read
from tests.helpers import returned
from tests.router.redisserver import SERVERS, RedisServer

TARGETS = ("a/m", "b/m")
REQUEST = RouteRequest("m", "generate", tuple(Candidate(name, name[0], 8_000_000, 8_000_000) for name in TARGETS))
STREAM = "pixelroute:routing"
OURS = dict.fromkeys(TARGETS, "")

pytestmark = pytest.mark.anyio


@pytest.fixture(params=sorted(SERVERS))
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(request.param) as running:
        yield running


class Replica:
    """A selector and its part in sharing, with what became of the messages."""

    def __init__(self, url: str, name: str, every_s: float, open_s: float, kept: Path, account: str) -> None:
        self.selector = Selector(RoutingSettings(open_s=open_s), random=random.Random(name), replica=name)
        self.messages: dict[str, int] = {}
        self.drains = Drains(kept / f"{name}.json", TARGETS, self._steer)
        self.sharing = Sharing(
            self.selector,
            url,
            STREAM,
            every_s,
            replica=name,
            accounts=dict.fromkeys(TARGETS, account),
            drains=self.drains,
            clock=time.monotonic,
            random=random.Random(name),
            on_message=self._count,
        )
        self._attempts = 0

    def _count(self, direction: str, result: str) -> None:
        key = f"{direction} {result}"
        self.messages[key] = self.messages.get(key, 0) + 1

    def _steer(self, target: str, out: bool) -> None:
        (self.selector.drain if out else self.selector.undrain)(target)

    async def steer(self, target: str, out: bool) -> bool:
        """As an operator does; whether the others are told."""
        assert await self.drains.say(target, out)
        return await self.sharing.tell_drains()

    def start(self, target: str) -> str:
        self._attempts += 1
        attempt = str(self._attempts)
        self.selector.on_start(target, REQUEST, time.monotonic(), attempt)
        return attempt

    def see(self, target: str, outcome: Outcome, times: int = 1) -> None:
        for _ in range(times):
            self.selector.on_end(self.start(target), outcome, time.monotonic())

    def facts(self, target: str) -> Any:
        return self.selector.snapshot(time.monotonic()).get(target, {}).get("generate", {})

    def gate(self, target: str) -> tuple[str | None, float | None]:
        """Why the target is out, and for how many seconds."""
        candidates = self.selector.choose(REQUEST, time.monotonic()).candidates
        return next((one.excluded_by, one.until_s) for one in candidates if one.target == target)

    def ends(self, target: str) -> dict[str, int]:
        """How many attempts of the last hour ended how."""
        return dict(self.hour(target)["results"]) if self.facts(target) else {}

    def hour(self, target: str) -> Any:
        return returned(self.selector.hour("generate", target, time.monotonic()))

    def samples(self, target: str) -> float:
        return float(self.facts(target).get("samples", 0.0))


@asynccontextmanager
async def replica(
    server: RedisServer,
    name: str,
    *,
    every_s: float = 0.1,
    origin: str | None = None,
    open_s: float = 5.0,
    key: str = "a key",
) -> AsyncIterator[Replica]:
    one = Replica(server.url, name, every_s, open_s, server.directory, sharing.mark(key, STREAM))
    await one.drains.load()
    one.sharing.start(origin or f"ledger of {name}")
    try:
        yield one
    finally:
        async with asyncio.timeout(5.0):
            await one.sharing.close()


async def until(true: Callable[[], Any], within_s: float = 10.0) -> None:
    """Return when it is so."""
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.01)


async def test_replicas_learn_from_each_other(server):
    async with replica(server, "one") as one, replica(server, "two") as two:
        one.see("a/m", Outcome.success(2.0), 10)
        two.see("b/m", Outcome.success(7.0), 4)
        two.start("b/m")
        await until(lambda: two.samples("a/m") > 9.5 and one.samples("b/m") > 3.8)
        assert two.facts("a/m")["p50_s"] == pytest.approx(one.facts("a/m")["p50_s"], rel=0.05)
        await until(lambda: one.facts("b/m")["in_flight_elsewhere"] == 1)
        assert one.facts("b/m")["in_flight"] == 0
        assert one.sharing.up
        assert one.sharing.others == 1
        # What was learnt from another is not told again.
        await asyncio.sleep(0.5)
        assert one.samples("a/m") < 10.5
        assert two.samples("b/m") < 4.5


@pytest.mark.parametrize(
    ("outcome", "times", "state"),
    [
        (Outcome.failure(), 12, "ejected: 4 failures in a row"),
        (Outcome.rate_limited(60.0), 1, "rate_limited"),
        (Outcome.blocked(), 1, "blocked"),
    ],
)
async def test_what_closes_a_target_is_told_at_once(server, outcome, times, state):
    async with replica(server, "one", every_s=60.0) as one, replica(server, "two", every_s=60.0) as two:
        one.see("a/m", outcome, times)
        await until(lambda: two.gate("a/m")[0] == state, within_s=2.0)
        assert two.gate("a/m")[1] == pytest.approx(one.gate("a/m")[1], abs=0.5)
        assert two.selector.choose(REQUEST, time.monotonic()).target == "b/m"


async def test_a_refused_credential_concerns_only_those_who_use_it(server):
    """An operator who has put a new key in place need not wait for what the old one was refused."""
    async with replica(server, "one", key="old") as one:
        one.see("a/m", Outcome.blocked())
        one.see("b/m", Outcome.success(2.0), 10)
        await until(lambda: one.messages.get("out ok", 0) >= 3)
        with server.client() as client:
            assert all(b"old" not in fields[b"told"] for _, fields in client.xrange(STREAM))
    async with replica(server, "two", key="new") as two, replica(server, "three", key="old") as three:
        await until(lambda: two.samples("b/m") > 9.0 and three.samples("b/m") > 9.0)
        assert two.gate("a/m")[0] is None
        assert three.gate("a/m")[0] == "blocked"


async def test_a_recovery_is_told_at_once(server):
    only = RouteRequest("m", "generate", REQUEST.candidates[:1])
    async with replica(server, "one", every_s=60.0, open_s=0.3) as one, replica(server, "two", every_s=60.0) as two:
        one.see("a/m", Outcome.failure(), 4)
        await until(lambda: two.gate("a/m")[0] == "ejected: 4 failures in a row", within_s=2.0)
        await until(lambda: one.selector.choose(only, time.monotonic()).candidates[0].until_s is None)
        one.see("a/m", Outcome.success(2.0))  # the probe
        await until(lambda: two.gate("a/m")[0] is None, within_s=2.0)


async def test_a_killed_server_is_no_error_and_nothing_learnt_meanwhile_is_lost(server, caplog):
    caplog.set_level(logging.INFO, "router.sharing")
    async with replica(server, "one") as one, replica(server, "two") as two:
        await until(lambda: one.sharing.up and two.sharing.up)
        server.kill()
        await until(lambda: not one.sharing.up and not two.sharing.up)
        one.see("a/m", Outcome.success(2.0), 10)
        assert one.selector.choose(REQUEST, time.monotonic()).target is not None
        await until(lambda: one.messages.get("out error", 0) >= 2)  # it tries again
        server.start()
        await until(lambda: one.sharing.up and two.sharing.up and two.samples("a/m") > 9.0)
        assert two.samples("a/m") < 10.5
        one.see("a/m", Outcome.success(2.0), 5)
        await until(lambda: two.samples("a/m") > 13.5)
    said = [record.getMessage() for record in caplog.records if record.name == "router.sharing"]
    assert [words.split(":")[0] for words in said].count(
        "routing statistics are not shared, every replica goes by its own"
    ) == 2, said  # once per replica
    assert said.count("routing statistics are shared between replicas") == 4


async def test_a_server_that_does_not_answer_keeps_nobody_waiting(server, monkeypatch):
    monkeypatch.setattr(sharing, "ANSWER_S", 0.2)
    monkeypatch.setattr(sharing, "WAIT_S", 0.2)
    async with replica(server, "one") as one, replica(server, "two") as two:
        await until(lambda: one.sharing.up and two.sharing.up)
        server.freeze()
        one.see("a/m", Outcome.success(2.0), 10)
        slowest = 0.0
        while one.sharing.up:
            began = time.monotonic()
            one.selector.choose(REQUEST, began)
            await asyncio.sleep(0)
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.01)
        assert slowest < 0.1
        server.thaw()
        # Told once, and perhaps again because the answer was lost; learnt once.
        await until(lambda: two.samples("a/m") > 9.0)
        await until(lambda: one.sharing.up and two.sharing.up)
        assert two.samples("a/m") < 10.5


async def test_a_server_that_is_not_there_at_the_start_is_found_later(server):
    server.kill()
    async with replica(server, "one") as one:
        await until(lambda: one.messages.get("in error", 0) >= 1 and one.messages.get("out error", 0) >= 1)
        server.start()
        await until(lambda: one.sharing.up)


async def test_it_ends_whenever_it_is_closed(server):
    """The client loses a cancellation now and then; ``replica`` gives up waiting after five seconds."""
    rng = random.Random(7)
    for number in range(25):
        async with replica(server, f"one {number}", every_s=0.01) as one:
            one.see("a/m", Outcome.success(2.0))
            await asyncio.sleep(rng.random() * 0.05)


async def test_a_new_replica_hears_of_the_last_minutes_as_old_as_they_are(server):
    async with replica(server, "one") as one:
        one.see("a/m", Outcome.success(2.0), 10)
        one.see("b/m", Outcome.rate_limited(60.0))
        await until(lambda: one.messages.get("out ok", 0) >= 3)
        with server.client() as client:
            # As if it had been told two minutes ago: one half-life of the evidence.
            [told] = [orjson.loads(fields[b"told"]) for _, fields in client.xrange(STREAM) if b"a/m" in fields[b"told"]]
            client.delete(STREAM)
            client.xadd(STREAM, {"v": 1, "told": orjson.dumps(told | {"age_s": 120.0})})
    async with replica(server, "two") as two:
        await until(lambda: two.samples("a/m") > 0.0)
        assert two.samples("a/m") == pytest.approx(5.0, rel=0.05)
        assert two.gate("b/m")[0] is None  # the minute is over


async def test_a_restarted_replica_takes_its_own_evidence_from_the_ledger_only(server):
    async with replica(server, "one", origin="the ledger") as one:
        one.see("a/m", Outcome.success(2.0), 10)
        one.see("b/m", Outcome.blocked())
        running = one.start("a/m")
        await until(lambda: one.messages.get("out ok", 0) >= 2)
        assert running
    async with replica(server, "next", origin="the ledger") as after, replica(server, "two") as two:
        await until(lambda: two.samples("a/m") > 9.0)
        await until(lambda: after.messages.get("in ok", 0) >= 2)
        assert after.samples("a/m") == 0.0
        assert after.gate("b/m")[0] == "blocked"
        assert after.selector.choose(REQUEST, time.monotonic()).target == "a/m"


async def test_what_an_operator_drains_is_drained_everywhere_at_once(server):
    async with replica(server, "one", every_s=60.0) as one, replica(server, "two", every_s=60.0) as two:
        await asyncio.gather(one.sharing.asked(), two.sharing.asked())
        assert await one.steer("a/m", True)
        assert one.gate("a/m")[0] == "drained"
        await until(lambda: two.gate("a/m")[0] == "drained", within_s=2.0)
        assert await two.steer("a/m", False)  # the other's word, taken back
        await until(lambda: one.gate("a/m")[0] is None, within_s=2.0)


async def test_a_new_replica_knows_what_is_drained_before_it_serves(server):
    async with replica(server, "one") as one:
        await one.steer("a/m", True)
        await one.steer("b/m", True)
        await one.steer("b/m", False)
    async with replica(server, "two") as two:
        await two.sharing.asked()
        assert two.gate("a/m")[0] == "drained"
        assert two.gate("b/m")[0] is None
        with server.client() as client:
            assert client.ttl(f"{STREAM}:drained") == -1


async def test_what_is_drained_while_the_server_is_down_is_told_when_it_is_back(server):
    async with replica(server, "one") as one, replica(server, "two") as two:
        await until(lambda: one.sharing.up and two.sharing.up)
        assert await one.steer("b/m", True)
        await until(lambda: two.gate("b/m")[0] == "drained")
        server.kill()
        assert not await one.steer("a/m", True)
        assert one.gate("a/m")[0] == "drained"
        assert two.gate("a/m")[0] is None
        assert not await two.steer("b/m", False)
        server.start()  # and it has forgotten everything
        await until(lambda: two.gate("a/m")[0] == "drained" and one.gate("b/m")[0] is None)


async def test_without_the_server_a_restart_finds_it_in_its_own_file_and_does_not_wait_long(server, monkeypatch):
    monkeypatch.setattr(sharing, "ANSWER_S", 0.5)
    async with replica(server, "one") as one:
        await one.steer("a/m", True)
    server.kill()
    async with replica(server, "one") as one:
        began = time.monotonic()
        await one.sharing.asked()
        assert time.monotonic() - began < 2.0
        assert one.gate("a/m")[0] == "drained"


async def test_an_operators_clock_that_is_behind_loses_no_word(server):
    async with replica(server, "one") as one, replica(server, "two") as two:
        two.drains._clock = lambda: time.time() - 3600.0
        await one.steer("a/m", True)
        await until(lambda: two.gate("a/m")[0] == "drained")
        await two.steer("a/m", False)
        await until(lambda: one.gate("a/m")[0] is None)


# --- the last hour, for people -------------------------------------------------------------------------------------


async def test_the_last_hour_is_that_of_all_replicas(server):
    async with replica(server, "one") as one, replica(server, "two") as two:
        one.see("a/m", Outcome.success(2.0), 10)
        two.see("a/m", Outcome.success(8.0), 4)
        two.see("a/m", Outcome.refused())
        await until(lambda: one.ends("a/m") == two.ends("a/m") == {"success": 14, "refused": 1})
        for each in one, two:
            hour = each.hour("a/m")
            assert (hour["p50_s"], hour["p95_s"]) == (pytest.approx(2.0, rel=0.01), pytest.approx(8.0, rel=0.01))
            assert hour["classes"]["1 MP x 1"]["results"] == hour["results"]
        await until(lambda: one.sharing.others == two.sharing.others == 1)
        for each in one, two:
            from_s, until_s = each.sharing.hour()
            assert from_s == 3600.0
            assert until_s < 5.0
        heard = one.messages["in ok"]
        await until(lambda: one.messages["in ok"] >= heard + 3)  # nothing that was heard is told again
        assert one.ends("a/m") == two.ends("a/m") == {"success": 14, "refused": 1}


async def test_alone_the_hour_is_ones_own(server):
    async with replica(server, "one") as one:
        one.see("a/m", Outcome.success(2.0), 10)
        await until(lambda: one.messages.get("in known", 0) >= 2)
        assert one.sharing.hour() is None
        assert one.ends("a/m") == {"success": 10}


async def test_without_the_server_the_hour_stays_and_says_until_when_it_is_whole(server):
    async with replica(server, "one") as one, replica(server, "two") as two:
        one.see("a/m", Outcome.success(2.0), 10)
        await until(lambda: two.ends("a/m") == {"success": 10})
        server.kill()
        await until(lambda: not one.sharing.up and not two.sharing.up)
        one.see("a/m", Outcome.success(2.0), 5)
        await asyncio.sleep(0.5)
        assert two.ends("a/m") == {"success": 10}
        from_s, until_s = two.sharing.hour()
        assert (from_s, until_s) == (3600.0, pytest.approx(0.7, abs=0.6))
        server.start()  # and it has forgotten everything
        await until(lambda: two.ends("a/m") == {"success": 15})
        await until(lambda: one.sharing.up and two.sharing.up)
        assert two.sharing.hour() == (3600.0, pytest.approx(0.1, abs=0.5))
        async with replica(server, "three") as three:
            await until(lambda: three.ends("a/m") == {"success": 5})
            assert three.sharing.hour()[0] < 5.0  # what was told to the server that was killed is missing


async def test_who_comes_later_hears_of_the_whole_hour(server):
    async with replica(server, "one") as one:
        one.see("a/m", Outcome.success(2.0), 10)
        await until(lambda: one.messages.get("out ok", 0) >= 2)
    with server.client() as client:
        messages = [orjson.loads(fields[b"told"]) for _, fields in client.xrange(STREAM)]
        client.delete(STREAM)
        for message in messages:  # as if half an hour ago
            client.xadd(STREAM, {"v": 1, "told": orjson.dumps(message | {"age_s": 1800.0 + message["age_s"]})})
    async with replica(server, "two") as two:
        # The first of two messages tells of the ten; all that was told is known once both are read.
        await until(lambda: two.ends("a/m") == {"success": 10} and two.sharing.hour()[1] < 600.0)
        assert two.samples("a/m") == 0.0  # that is no evidence any more
        assert two.sharing.others == 0
        assert two.sharing.hour() == (3600.0, pytest.approx(0.1, abs=0.5))


@pytest.mark.parametrize(("missing", "known"), [([], True), ([0], False), ([2], False), ([0, 1, 2], False)])
async def test_a_message_that_was_lost_is_missed(server, missing, known):
    one = Selector(replica="one")
    now = time.monotonic()
    async with replica(server, "two") as two:
        with server.client() as client:
            for serial in range(4):
                one.on_start("a/m", REQUEST, now, str(serial))
                one.on_end(str(serial), Outcome.success(2.0), now)
                marks = {"accounts": {}, "origin": "the ledger", "serial": serial, "age_s": 100.0 - serial}
                if serial not in missing:
                    client.xadd(STREAM, {"v": 1, "told": orjson.dumps(one.delta(now) | marks)})
                else:
                    one.delta(now)
        await until(lambda: two.ends("a/m") == {"success": 4 - len(missing)})
        since = 100.0 - (max(missing) + 1) if missing else 3600.0
        assert two.sharing.hour() == (pytest.approx(since, abs=0.5), pytest.approx(0.1, abs=97.5))
        assert (two.sharing.hour()[0] == 3600.0) is known


@pytest.mark.parametrize(("heard", "since_s"), [(True, 3600.0), (False, 50.0)])
async def test_what_a_process_before_measured_is_known_from_what_that_one_told(server, heard, since_s):
    now = time.monotonic()
    sample = Sample("a/m", "generate", 1, 1.0, Result.SUCCESS, 2.0, now - 50.0)
    before, after = Selector(replica="before"), Selector(replica="after")
    before.on_start("a/m", REQUEST, now - 52.0, "1")
    before.on_end("1", Outcome.success(2.0), now - 50.0)
    after.warm([sample], now)
    after.on_start("a/m", REQUEST, now, "1")
    after.on_end("1", Outcome.success(2.0), now)
    marks = {"accounts": {}, "origin": "the ledger", "serial": 0, "age_s": 0.0}
    async with replica(server, "two") as two:
        with server.client() as client:
            if heard:
                client.xadd(STREAM, {"v": 1, "told": orjson.dumps(before.delta(now - 49.0) | marks | {"age_s": 49.0})})
            client.xadd(STREAM, {"v": 1, "told": orjson.dumps(after.delta(now) | marks)})
        await until(lambda: two.ends("a/m") == {"success": 1 + heard})
        assert two.sharing.hour()[0] == pytest.approx(since_s, abs=1.0)


async def test_a_version_that_does_not_tell_its_hour_is_learnt_from_all_the_same(server):
    async with replica(server, "two") as two:
        one = Selector(replica="one")
        one.on_start("a/m", REQUEST, 0.0, "1")
        one.on_end("1", Outcome.success(2.0), 2.0)
        message = one.delta(2.0) | {"accounts": {}, "origin": "x", "serial": 0, "age_s": 0.0}
        del message["hours"], message["warmed_s"]
        with server.client() as client:
            client.xadd(STREAM, {"v": 1, "told": orjson.dumps(message)})
        await until(lambda: two.samples("a/m") > 0.9)
        assert two.ends("a/m") == {}
        from_s, until_s = two.sharing.hour()
        assert from_s == until_s  # nothing of it is whole


async def test_a_message_that_would_be_too_large_goes_without_the_hour(server, monkeypatch):
    monkeypatch.setattr(sharing, "LARGEST", 600)
    async with replica(server, "one") as one, replica(server, "two") as two:
        for seconds in range(1, 200):
            one.see("a/m", Outcome.success(float(seconds)))
        await until(lambda: two.samples("a/m") > 190.0)
        assert two.ends("a/m") == {}
        assert two.sharing.hour()[0] < 5.0


@pytest.mark.parametrize("written", [b"", b"out", b"out then", b"gone 1.0", b"out nan", b"out inf", b"\xff 1"])
async def test_what_nobody_can_have_said_is_left_alone(server, written):
    with server.client() as client:
        client.hset(f"{STREAM}:drained", mapping={"a/m": written, "c/m": b"out 1.0", b"\xff\xfe": b"out 1.0"})
    async with replica(server, "one") as one:
        await one.sharing.asked()
        assert one.gate("a/m")[0] is None
        assert not one.drains.words
        await until(lambda: one.sharing.up)


async def test_a_replica_that_died_has_nothing_in_flight_soon():
    alive, dead = Selector(replica="alive"), Selector(replica="dead")
    dead.on_start("a/m", REQUEST, 0.0, "1")
    alive.merge(dead.delta(1.0), 1.0)
    alive.choose(REQUEST, 2.0)
    assert alive.snapshot(2.0)["a/m"]["generate"]["in_flight_elsewhere"] == 1
    assert alive.others(30.0) == 1
    alive.choose(REQUEST, 32.0)
    assert alive.others(32.0) == 0
    assert alive.snapshot(32.0)["a/m"]["generate"]["in_flight_elsewhere"] == 0


async def test_what_a_ledger_warmed_is_not_told_as_news():
    warmed = Selector(replica="one")
    warmed.warm([Sample("a/m", "generate", 1, 1.0, Result.SUCCESS, 2.0, -float(n)) for n in range(50, 0, -1)], 0.0)
    told = warmed.delta(0.0)
    assert (told["arms"], told["hours"], told["warmed_s"]) == ([], [], 1.0)


FOREIGN: list[dict[str, Any]] = [
    {"v": 1},
    {"hello": "world"},
    {"v": 2, "told": "{}"},
    {"v": 1, "told": "{"},
    {"v": 1, "told": "[]"},
    {"v": 1, "told": "null"},
    {"v": 1, "told": b"\xff\xfe"},
    {"v": 1, "told": "{}"},
    {"v": 1, "told": "9" * 300_000},
]


async def test_foreign_and_malformed_messages_are_ignored(server):
    async with replica(server, "one") as one, replica(server, "two") as two:
        await until(lambda: one.sharing.up and two.sharing.up)
        with server.client() as client:
            for message in FOREIGN:
                client.xadd(STREAM, message)
        one.see("a/m", Outcome.success(2.0), 10)
        await until(lambda: two.samples("a/m") > 9.5)
        assert two.messages["in ignored"] == len(FOREIGN)
        assert two.sharing.up


async def test_a_key_that_holds_something_else_is_no_error(server):
    with server.client() as client:
        client.set(STREAM, "taken")
        async with replica(server, "one") as one:
            await until(lambda: one.messages.get("in error", 0) >= 1 and one.messages.get("out error", 0) >= 1)
            client.delete(STREAM)
            await until(lambda: one.sharing.up)


async def test_the_stream_forgets(server):
    async with replica(server, "one") as one:
        await until(lambda: one.sharing.up)
        with server.client() as client:
            assert 0 < client.ttl(STREAM) <= 3600
            now = client.time()[0] * 1000
            client.delete(STREAM)
            for minutes in range(180, 0, -6):  # nodes of the stream hold a hundred messages, and go as a whole
                for number in range(100):
                    client.xadd(STREAM, {"v": 1}, id=f"{now - minutes * 60_000}-{number + 1}")
            seen = one.messages["out ok"]
            await until(lambda: one.messages["out ok"] > seen)
            assert client.xlen(STREAM) < 1300


def told(**changes: Any) -> dict[bytes, bytes]:
    machine = Selector(replica="one")
    machine.on_start("a/m", REQUEST, 0.0, "1")
    machine.on_end("1", Outcome.failure(), 2.0)
    machine.on_start("b/m", REQUEST, 0.0, "2")
    machine.on_end("2", Outcome.rate_limited(5.0), 2.0)
    message = machine.delta(3.0) | {"accounts": {}, "origin": "x", "serial": 1, "age_s": 0.0} | changes
    return {b"v": b"1", b"told": orjson.dumps(message)}


def test_what_is_told_of_other_targets_is_left_out():
    message = read(told(), {"b/m": ""})
    assert message is not None
    assert message.delta["arms"] == []
    assert [hour["target"] for hour in message.delta["hours"]] == ["b/m"]
    assert list(message.delta["gates"]) == ["b/m"]
    everything = read(told(), OURS)
    assert everything is not None
    assert [arm["target"] for arm in everything.delta["arms"]] == ["a/m"]
    assert [hour["target"] for hour in everything.delta["hours"]] == ["a/m", "b/m"]


def told_of_both(spoil: str) -> sharing.Told | None:
    """A message on two targets, of which what is said of one, under this heading, is spoilt."""
    machine = Selector(replica="one")
    for target in TARGETS:
        machine.on_start(target, REQUEST, 0.0, target)
        machine.on_end(target, Outcome.success(2.0), 2.0)
        machine.on_start(target, REQUEST, 0.0, f"{target} limited")
        machine.on_end(f"{target} limited", Outcome.rate_limited(5.0), 2.0)
        machine.on_start(target, REQUEST, 0.0, f"{target} running")
    message = orjson.loads(told(**machine.delta(3.0))[b"told"])
    match spoil:
        case "arms":
            message["arms"][0]["seen_s"] = -1.0
        case "hours":
            message["hours"][0]["classes"][0][1][0][0] = 301.0
        case "gates":
            message["gates"]["a/m"]["limited_s"] = "soon"
        case "in_flight":
            message["in_flight"]["a/m"] = -1
    return read({b"v": b"1", b"told": orjson.dumps(message)}, OURS)


@pytest.mark.parametrize("spoilt", [*(HEADINGS := ("arms", "hours", "gates", "in_flight")), "nothing"])
def test_what_is_not_sound_takes_nothing_else_with_it(spoilt):
    message = told_of_both(spoilt)
    assert message is not None
    assert message.whole is (spoilt != "hours")
    for heading in HEADINGS:
        found = message.delta[heading]
        kept = list(found) if isinstance(found, dict) else [one["target"] for one in found]
        assert kept == (["b/m"] if heading == spoilt else ["a/m", "b/m"])
    _merges(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.sampled_from(["", "a/m", "one"]),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from(["a/m", "state", "limited_s"]), inner),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    field=st.sampled_from(
        ["replica", "arms", "hours", "gates", "accounts", "in_flight", "origin", "serial", "age_s", "warmed_s"]
    ),
    value=JSON,
)
def test_whatever_is_read_can_be_merged(field, value):
    _merges(read(told(**{field: value}), OURS))


@settings(max_examples=40, deadline=None)
@given(
    arm=st.fixed_dictionaries(
        {
            "operation": st.sampled_from(["generate", "edit", "dance"]),
            "target": st.sampled_from(["a/m", "c/m"]),
            "sums": st.lists(st.floats(), min_size=9, max_size=9) | st.lists(st.floats(0, 9), min_size=8, max_size=10),
            "shift": st.none() | st.floats(),
            "seen_s": st.none() | st.floats(),
        }
    ),
    gate=st.fixed_dictionaries(
        {},
        optional={
            "state": st.tuples(
                st.booleans(), st.sampled_from([None, "", "stuck"]), st.floats(), st.integers(-9, 99), st.floats()
            ),
            "limited_s": st.floats(),
            "blocked_s": st.floats(),
        },
    ),
)
def test_whatever_is_told_of_a_target_leaves_the_selector_sound(arm, gate):
    _merges(read(told(arms=[arm], gates={"a/m": gate}, accounts={"a/m": ""}), OURS))


NUMBERS = st.integers(-2, 9) | st.integers(-(2**60), 2**60) | st.floats()
SLOTS = st.lists(st.tuples(st.floats(-4000.0, 400.0) | NUMBERS, st.lists(NUMBERS, max_size=4)), max_size=3)


@settings(max_examples=100, deadline=None)
@given(
    operation=st.sampled_from(["generate", "dance"]),
    phases=st.dictionaries(st.sampled_from(["queued", "lunch"]), SLOTS, max_size=2),
    kind=st.none() | st.tuples(NUMBERS, NUMBERS, st.sampled_from([None, "", "high", 3])),
    results=SLOTS,
    seconds=SLOTS,
)
def test_whatever_is_told_of_an_hour_leaves_the_selector_sound(operation, phases, kind, results, seconds):
    hour = {"operation": operation, "target": "a/m", "phases": phases, "classes": [(kind, results, seconds)]}
    _merges(read(told(hours=[hour]), OURS))


def _merges(message: sharing.Told | None) -> None:
    if message is None:
        return
    machine = Selector(replica="two")
    machine.merge(message.delta, 10.0)
    machine.choose(REQUEST, 11.0)
    for operations in machine.snapshot(12.0).values():
        for facts in operations.values():
            assert facts["p50_s"] > 0
            assert 0 <= facts["success"] <= 1


def test_the_rows_of_several_replicas_say_what_the_replicas_knew():
    """A restart is warmed from the ledger to what routers that shared their evidence believed."""
    rng = random.Random(3)
    replicas = [Selector(random=random.Random(i), replica=f"r{i}") for i in range(3)]
    rows: list[Sample] = []
    now, told_at = 0.0, 0.0
    for number in range(1500):
        now += rng.expovariate(0.5)
        while told_at + 5.0 <= now:
            told_at += 5.0
            told = [one.delta(told_at) for one in replicas]
            for one in replicas:
                for delta in told:
                    one.merge(orjson.loads(orjson.dumps(delta)), told_at)
        machine, target = replicas[number % 3], rng.choice(TARGETS)
        seconds = rng.lognormvariate(1.0 if target == "a/m" else 1.8, 0.4)
        good = rng.random() < (0.95 if target == "a/m" else 0.8)
        machine.choose(REQUEST, now)  # whatever it would like: here all are tried alike
        machine.on_start(target, REQUEST, now, str(number))
        machine.on_end(str(number), Outcome.success(seconds) if good else Outcome.failure(), now)
        result = Result.SUCCESS if good else Result.FAILURE
        rows.append(Sample(target, "generate", 1, 1.0, result, seconds if good else 0.001, now))
    for one in replicas:
        for delta in [other.delta(now) for other in replicas if other is not one]:
            one.merge(delta, now)
    warmed = Selector(replica="next")
    warmed.warm(rows, now)
    for target in TARGETS:
        after = warmed.snapshot(now)[target]["generate"]
        for one in replicas:
            before = one.snapshot(now)[target]["generate"]
            assert after["samples"] == pytest.approx(before["samples"], rel=0.1)
            assert after["success"] == pytest.approx(before["success"], abs=0.03)
            for figure in ("p50_s", "p95_s"):
                assert after[figure] == pytest.approx(before[figure], rel=0.15)
