"""The selector as its callers rely on it: what it never does, what follows failures, and that it explains itself."""

from __future__ import annotations

import random
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import router.routing
from router.errors import Billed, ErrorKind
from router.routing import Candidate, Infeasible, Outcome, Prior, Result, RouteRequest, Sample, Selector, replay
from router.types import Preferences
from tests.helpers import returned

PRIORS = {"a/m": Prior(3.0, 8.0, 0.99), "b/m": Prior(2.0, 4.0, 0.99), "c/m": Prior(6.0, 16.0, 0.97)}


def request(*, preferences: Preferences | None = None, excluded: dict[str, str] | None = None) -> RouteRequest:
    prices = {"a": 8_000_000, "b": 12_000_000, "c": 5_000_000}
    candidates = tuple(
        Candidate(f"{name}/m", name, price, price, excluded=(excluded or {}).get(name))
        for name, price in prices.items()
    )
    return RouteRequest("m", "generate", candidates, preferences=preferences or Preferences())


def selector(**more) -> Selector:
    return Selector(priors=PRIORS, random=random.Random(1), **more)


def play(machine: Selector, asked: RouteRequest, outcomes: dict[str, Outcome], requests: int, gap_s: float = 5.0):
    """First picks of a row of requests; each target ends every attempt the same way, after 2 seconds."""
    picks, now = [], 0.0
    for number in range(requests):
        decision = machine.choose(asked, now)
        picks.append(decision.target)
        if decision.target is not None:
            machine.on_start(decision.target, asked, now, str(number))
            machine.on_end(str(number), outcomes.get(decision.target, Outcome.success(2.0)), now + 2.0)
        now += gap_s
    return picks


def test_the_readmes_example_runs():
    readme = (Path(router.routing.__file__).parent / "README.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    ends=st.lists(st.sampled_from(["success", "failure", "limited", "blocked", "neutral"]), max_size=40),
    tried=st.sets(st.sampled_from(["a/m", "b/m"])),
)
def test_it_never_chooses_what_is_excluded_or_was_tried(seed, ends, tried):
    machine = Selector(priors=PRIORS, random=random.Random(seed))
    asked, now = request(excluded={"c": "size"}), 0.0
    made = {
        "success": Outcome.success(2.0),
        "failure": Outcome.failure(),
        "limited": Outcome.rate_limited(3.0),
        "blocked": Outcome.blocked(),
        "neutral": Outcome.neutral(),
    }
    for number, end in enumerate(ends):
        decision = machine.choose(asked, now, tuple(tried))
        assert decision.target not in tried | {"c/m"}
        if decision.target is not None:
            machine.on_start(decision.target, asked, now, str(number))
            machine.on_end(str(number), made[end], now + 1.0)
        assert replay(decision.record()) == (decision.target, decision.mode)
        now += 2.0


def test_a_dead_target_is_left_within_a_few_requests_and_not_forgotten():
    machine, asked = selector(), request()
    alive = play(machine, asked, {}, 20)
    favourite = max(set(alive), key=alive.count)
    after = play(selector(), asked, {favourite: Outcome.failure()}, 200)
    assert after[:20].count(favourite) <= 8
    assert after[20:].count(favourite) <= 12  # probes, ever further apart


def test_the_last_target_is_used_even_when_it_fails():
    asked = RouteRequest("m", "generate", (Candidate("a/m", "a", 8_000_000, 8_000_000),))
    picks = play(selector(), asked, {"a/m": Outcome.failure()}, 30)
    assert None not in picks


def test_a_rate_limit_closes_a_target_until_it_says():
    machine = selector()
    asked = RouteRequest("m", "generate", (Candidate("a/m", "a", 8_000_000, 8_000_000),))
    machine.on_start("a/m", asked, 0.0, "1")
    machine.on_end("1", Outcome.rate_limited(30.0), 1.0)
    closed = machine.choose(asked, 2.0)
    assert closed.target is None
    assert closed.retry_after_s == pytest.approx(29.0, abs=1.0)
    assert machine.choose(asked, 32.0).target == "a/m"


def test_a_burst_spreads_over_targets():
    machine, asked = selector(), request()
    picks = []
    for number in range(60):
        decision = machine.choose(asked, 0.0)
        picks.append(decision.target)
        machine.on_start(decision.target, asked, 0.0, str(number))
    assert None not in picks


def test_a_drained_target_gets_nothing():
    machine, asked = selector(), request()
    for target in ("a/m", "b/m"):
        machine.drain(target)
    assert set(play(machine, asked, {}, 30)) == {"c/m"}
    pinned = request(preferences=Preferences(only=("a",)))
    assert machine.choose(pinned, 200.0).target is None
    machine.undrain("a/m")
    assert machine.choose(pinned, 200.0).target == "a/m"


@pytest.mark.parametrize(
    ("preferences", "filter_"),
    [
        (Preferences(only=("nobody",)), "only"),
        (Preferences(ignore=("a", "b", "c")), "ignore"),
        (Preferences(max_cost=Decimal("0.001")), "max_cost"),
        (Preferences(max_latency_s=0.01), "max_latency_s"),
    ],
)
def test_impossible_wishes_are_named(preferences, filter_):
    with pytest.raises(Infeasible) as caught:
        selector().choose(request(preferences=preferences), 0.0)
    assert caught.value.missed[0] == filter_


@pytest.mark.parametrize(
    ("preferences", "allowed"),
    [
        (Preferences(only=("b",)), {"b/m"}),
        (Preferences(ignore=("a", "b")), {"c/m"}),
        (Preferences(max_cost=Decimal("0.006")), {"c/m"}),
        (Preferences(order=("b", "a")), {"b/m"}),
    ],
)
def test_wishes_narrow_the_choice(preferences, allowed):
    assert {selector().choose(request(preferences=preferences), 0.0).target} <= allowed


@pytest.mark.parametrize(
    ("preferences", "out", "drained", "sentence"),
    [
        (Preferences(), (), (), r"{words} beat {words} by [\d.]+ %"),
        (Preferences(order=("b",)), (), (), r"b/m: .*; first in the caller's order, in place of {words}"),
        (Preferences(sort="weighted"), (), (), r"{words}; drawn by weight, in place of {words}"),
        (Preferences(sort="priority"), (), (), r"{words}; first by priority, in place of {words}"),
        (
            Preferences(only=("a",)),
            (),
            (),
            r"a/m: .*; the only one available, without [bc]/m \(only\), [bc]/m \(only\)",
        ),
        (Preferences(), ("a", "b"), (), r"c/m: .*; the only one available, without [ab]/m \(size\), [ab]/m \(size\)"),
        (Preferences(), ("a",), ("b/m", "c/m"), r"no target can take the request now: (./m \(\w+\)(, |$)){{3}}"),
    ],
)
def test_a_decision_says_why_in_one_sentence(preferences, out, drained, sentence):
    machine = selector()
    for target in drained:
        machine.drain(target)
    asked = request(preferences=preferences, excluded=dict.fromkeys(out, "size"))
    words = r"[abc]/m:? \(?\$0\.\d{4}, about [\d.]+ s, [\d.]+ %\)?"
    reason = machine.choose(asked, 0.0).reason
    assert re.fullmatch(sentence.format(words=words), reason), reason


def test_the_cheapest_and_the_fastest_are_what_they_say():
    pace = {"a/m": Outcome.success(3.0), "b/m": Outcome.success(1.0), "c/m": Outcome.success(6.0)}
    for sort, best in (("cheapest", "c/m"), ("fastest", "b/m")):
        picks = play(selector(), request(preferences=Preferences(sort=sort)), pace, 60)
        assert picks.count(best) >= 50


@pytest.mark.parametrize(
    ("kind", "billed", "action"),
    [
        (ErrorKind.NOT_SENT, Billed.NO, "failover"),
        (ErrorKind.AUTH, Billed.NO, "failover"),
        (ErrorKind.RATE_LIMITED, Billed.NO, "failover"),
        (ErrorKind.SERVER_ERROR, Billed.NO, "failover"),
        (ErrorKind.SERVER_ERROR, Billed.MAYBE, "failover"),
        (ErrorKind.NO_ANSWER, Billed.MAYBE, "failover"),
        (ErrorKind.UNUSABLE, Billed.YES, "failover"),
        (ErrorKind.BAD_REQUEST, Billed.NO, "stop"),
        (ErrorKind.REFUSED, Billed.MAYBE, "stop"),
        (ErrorKind.DOWNLOAD, Billed.YES, "stop"),
        (ErrorKind.CANCELLED, Billed.MAYBE, "stop"),
    ],
)
def test_what_follows_a_failure(kind, billed, action):
    machine, asked = selector(), request()
    machine.choose(asked, 0.0)
    assert machine.after(asked, kind, billed, 1, 1.0, 1.0, target="a/m").action == action


@pytest.mark.parametrize(
    ("kind", "billed", "action"),
    [
        (ErrorKind.NOT_SENT, Billed.NO, "retry"),
        (ErrorKind.RATE_LIMITED, Billed.NO, "retry"),
        (ErrorKind.SERVER_ERROR, Billed.NO, "retry"),
        (ErrorKind.SERVER_ERROR, Billed.MAYBE, "stop"),
        (ErrorKind.NO_ANSWER, Billed.MAYBE, "stop"),
        (ErrorKind.AUTH, Billed.NO, "stop"),
        (ErrorKind.UNUSABLE, Billed.YES, "stop"),
    ],
)
def test_what_follows_when_there_is_no_other_target(kind, billed, action):
    machine = selector()
    asked = RouteRequest("m", "generate", (Candidate("a/m", "a", 8_000_000, 8_000_000),))
    machine.choose(asked, 0.0)
    step = machine.after(asked, kind, billed, 1, 1.0, 1.0, retry_after_s=2.0, target="a/m")
    assert step.action == action
    if kind is ErrorKind.RATE_LIMITED:
        assert step.delay_s >= 2.0


def test_the_waste_budget_ends_what_may_be_billed_twice():
    machine, asked = selector(), request()
    actions = []
    for number in range(12):
        machine.on_start("a/m", asked, float(number), str(number))
        machine.on_end(str(number), Outcome.failure(billed=True, cost_nanos=8_000_000), number + 0.5)
        step = machine.after(asked, ErrorKind.NO_ANSWER, Billed.MAYBE, 1, 1.0, number + 0.5, target="a/m")
        actions.append(step.action)
    assert actions[0] == "failover"
    assert actions[-1] == "stop"


def test_a_restart_may_be_warmed_with_what_the_ledger_knows():
    machine = selector()
    machine.warm([Sample("a/m", "generate", 1, 1.0, Result.SUCCESS, 0.5, -float(n)) for n in range(50, 0, -1)], 0.0)
    facts = machine.snapshot(0.0)["a/m"]["generate"]
    assert facts["p50_s"] < 1.5
    assert facts["samples"] > 5


def test_what_a_restart_believes_is_what_was_believed_before():
    live, restarted, asked = selector(), selector(), request(preferences=Preferences(only=("a",)))
    samples = []
    for number, latency_s in enumerate((2.0, 9.0, 7.0, 8.0, 8.5)):
        start = 10.0 * number
        live.on_start("a/m", asked, start, str(number))
        live.on_end(str(number), Outcome.success(latency_s), start + latency_s)
        samples.append(Sample("a/m", "generate", 1, 1.0, Result.SUCCESS, latency_s, start + latency_s))
    restarted.warm(samples, 50.0)
    before, after = (each.snapshot(53.0)["a/m"]["generate"] for each in (live, restarted))
    assert after["p50_s"] == pytest.approx(before["p50_s"], rel=1e-3)
    assert after["p95_s"] == pytest.approx(before["p95_s"], rel=1e-3)
    assert after["samples"] == before["samples"]


@pytest.mark.parametrize("started", [0.0, 50_000.0])
def test_what_the_ledger_knows_of_half_an_hour_ago_is_no_recent_evidence(started):
    """Wherever the clock stands: on a host that has just booted, the past has negative times."""
    machine = selector()
    past = [Sample("a/m", "generate", 1, 1.0, Result.FAILURE, 1.0, started - 1800.0 + n) for n in range(20)]
    machine.warm(past, started)
    facts = machine.snapshot(started)["a/m"]["generate"]
    assert facts["samples"] < 0.01
    assert returned(machine.hour("generate", "a/m", started))["results"] == {"failure": 20}


@pytest.mark.parametrize("ahead_s", [60.0, 7200.0])
def test_a_clock_that_was_set_back_around_a_restart_leaves_no_evidence_from_the_future(ahead_s):
    """What the ledger has from before is dated later than now: it is as good as new, and ages from now on."""
    machine = selector()
    machine.warm([Sample("a/m", "generate", 1, 1.0, Result.SUCCESS, 2.0, ahead_s - n) for n in range(30, 0, -1)], 0.0)
    assert machine.snapshot(0.0)["a/m"]["generate"]["age_s"] == 0.0
    assert machine.delta(1.0)["warmed_s"] == 1.0
    assert machine.choose(request(), 10.0)._rows[0].unseen_s == 10.0
    before = machine.snapshot(10.0)["a/m"]["generate"]
    for n in range(10):
        machine.on_start("a/m", request(), 20.0 + n, str(n))
        machine.on_end(str(n), Outcome.success(8.0), 28.0 + n)
    assert machine.delta(40.0)["arms"][0]["seen_s"] == 3.0
    machine.choose(request(), 40.0)
    after = machine.snapshot(40.0)["a/m"]["generate"]
    assert after["p50_s"] > 1.5 * before["p50_s"]
    assert machine.snapshot(640.0)["a/m"]["generate"]["samples"] < 0.1 * after["samples"]
    other = selector(replica="other")
    for n in range(10):
        other.on_start("a/m", request(), 600.0 + n, str(n))
        other.on_end(str(n), Outcome.success(8.0), 608.0 + n)
    machine.merge(other.delta(640.0), 640.0)
    assert machine.snapshot(640.0)["a/m"]["generate"]["samples"] > 9.0
