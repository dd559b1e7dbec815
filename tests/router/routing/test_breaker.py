"""A target's gates, on a clock that the test moves: outage, rate limit, account, capacity and drain, each by itself."""

from __future__ import annotations

import math
import random

import pytest

from router.routing import Candidate, Outcome, RouteRequest, RoutingSettings, Selector
from router.routing.breaker import CLAIM_S, CLOSED, HALF_OPEN, LOW_SUCCESS, OPEN, PROBE, STUCK, Breaker

SETTINGS = RoutingSettings()


def breaker() -> Breaker:
    return Breaker(SETTINGS, random.Random(1))


def fail(gate: Breaker, times: int, now: float, p_long: float = 0.99, good: float = 20.0, bad: float = 0.0) -> None:
    for n in range(1, times + 1):
        gate.failed(False, p_long, good, bad + n, now)


def why(gate: Breaker, now: float, limit: float = math.inf) -> str | None:
    return gate.check(now, limit)[0]


@pytest.mark.parametrize(
    ("close", "reason", "until"),
    [
        (lambda gate: gate.limited(False, 30.0, 100.0), "rate_limited", 130.0),
        (lambda gate: gate.limited(False, 999.0, 100.0), "rate_limited", 100.0 + SETTINGS.retry_after_cap_s),
        (lambda gate: gate.blocked(100.0), "blocked", 100.0 + SETTINGS.blocked_s),
        (lambda gate: gate.drain(True), "drained", None),
        (lambda gate: gate.eject(STUCK, 100.0), "ejected: stuck", ...),
        (lambda gate: fail(gate, 12, 100.0), "ejected: ", ...),
    ],
)
def test_each_gate_says_why_it_is_closed_and_until_when(close, reason, until):
    gate = breaker()
    close(gate)
    found, ends = gate.check(101.0, math.inf)
    assert found is not None
    assert found.startswith(reason)
    if until is not ...:
        assert ends == until
    else:
        assert 100.0 + SETTINGS.open_s / 2 <= ends <= 100.0 + SETTINGS.open_s


def test_the_gates_do_not_open_one_another():
    gate = breaker()
    gate.drain(True)
    gate.blocked(0.0)
    gate.limited(False, 60.0, 0.0)
    gate.eject("failures", 0.0)
    gate.succeeded(False, 1, 1.0)  # of a call from before
    assert why(gate, 1.0) == "drained"
    gate.drain(False)
    assert why(gate, 1.0) == "blocked"
    assert why(gate, 299.0) == "blocked"
    gate.limited(False, 60.0, 290.0)
    assert why(gate, 301.0) == "rate_limited"
    assert why(gate, 351.0) == PROBE  # the outage alone needs a probe


def test_only_infrastructure_failures_eject():
    selector = Selector(random=random.Random(0))
    request = RouteRequest("m", "generate", tuple(Candidate(f"{n}/m", n, 10**7, 10**7) for n in "ab"))
    ends = (Outcome.neutral(), Outcome.refused(), Outcome.cancelled(), Outcome.rate_limited(1.0), Outcome.blocked())
    for i in range(50):
        selector.on_start("a/m", request, float(i), str(i))
        selector.on_end(str(i), ends[i % len(ends)], i + 0.01)
    facts = selector.snapshot(50.0)["a/m"]["generate"]
    assert facts["samples"] == 0
    assert facts["reason"] == "blocked"  # its account, not its health
    assert selector.snapshot(400.0)["a/m"]["generate"]["state"] == "closed"


@pytest.mark.parametrize(
    ("p_long", "good", "bad", "least", "most"),
    [
        (0.998, 60.0, 0.0, 2, 3),  # as reliable as they come: few failures in a row are no accident
        (0.998, 2000.0, 0.0, 2, 3),
        (0.9, 60.0, 6.0, 3, 5),
        (0.998, 60.0, 26.0, 5, 8),  # it is known by now to fail three in ten
        (0.6, 60.0, 40.0, 7, 12),
        (0.3, 30.0, 70.0, 12, 12),
    ],
)
def test_a_run_of_failures_ejects_when_chance_would_not_make_it(p_long, good, bad, least, most):
    gate, run = breaker(), 0
    while gate.state == CLOSED:
        run += 1
        gate.failed(False, p_long, good, bad + run, 0.0)
    assert least <= run <= most


def test_a_success_ends_the_run():
    gate = breaker()
    for _ in range(20):
        gate.failed(False, 0.998, 60.0, 1.0, 0.0)
        gate.succeeded(False, 1, 0.0)
    assert gate.state == CLOSED


def test_a_rate_far_under_its_own_ejects():
    gate = breaker()
    for n in range(1, 40):
        gate.failed(False, 0.95, 4.0, 1.0 + n, 0.0)
        gate.run = 0  # never many in a row
    assert gate.reason == LOW_SUCCESS


def test_pauses_double_up_to_a_cap_and_are_jittered():
    gate, now, pauses = breaker(), 0.0, []
    gate.eject("failures", now)
    for attempt in range(12):
        pauses.append(gate.until - now)
        now = gate.until
        assert why(gate, now) == PROBE
        gate.claim(now)
        assert gate.started(str(attempt))
        gate.ended(str(attempt))
        gate.failed(True, 0.99, 20.0, 5.0, now)
    full = [min(SETTINGS.open_s * 2.0**n, SETTINGS.open_cap_s) for n in range(12)]
    assert all(whole / 2 <= pause <= whole for pause, whole in zip(pauses, full, strict=True))
    assert len({round(pause, 6) for pause in pauses}) == 12
    # A probe that succeeds ends it, and the next outage begins with a short pause again.
    now = gate.until
    gate.claim(now)
    gate.started("good")
    gate.ended("good")
    gate.succeeded(True, 1, now)
    assert (gate.state, why(gate, now)) == (CLOSED, None)
    gate.eject("failures", now)
    assert gate.until - now <= SETTINGS.open_s


def test_there_is_one_probe_at_a_time():
    gate = breaker()
    gate.eject("failures", 0.0)
    assert why(gate, 10.0) == PROBE
    gate.claim(10.0)
    assert gate.state == HALF_OPEN
    assert why(gate, 10.0) == "ejected: probe running"
    assert gate.started("probe")
    assert not gate.started("another")  # sent there regardless (pinned): no second probe
    assert why(gate, 60.0) == "ejected: probe running"
    gate.ended("probe")
    gate.failed(True, 0.99, 20.0, 5.0, 61.0)
    assert gate.state == OPEN


def test_a_probe_that_never_starts_is_given_to_the_next():
    gate = breaker()
    gate.eject("failures", 0.0)
    gate.claim(10.0)
    assert why(gate, 10.0 + CLAIM_S - 0.1) == "ejected: probe running"
    assert why(gate, 10.0 + CLAIM_S) == PROBE


def test_an_answer_from_before_proves_nothing_unless_it_was_thought_stuck():
    for reason, state in (("failures", OPEN), (STUCK, CLOSED)):
        gate = breaker()
        gate.eject(reason, 0.0)
        gate.succeeded(False, 1, 1.0)
        assert gate.state == state


def test_when_it_is_back_only_the_failures_from_before_the_run_count():
    gate = breaker()
    fail(gate, 12, 0.0, p_long=0.7, good=30.0, bad=12.0)
    gate.claim(200.0)
    gate.started("probe")
    assert gate.succeeded(True, 1, 201.0) == pytest.approx(12.0 / (12.0 + gate_run(0.7, 30.0, 12.0)), abs=0.01)


def gate_run(p_long: float, good: float, bad: float) -> int:
    gate, run = breaker(), 0
    while gate.state == CLOSED:
        run += 1
        gate.failed(False, p_long, good, bad + run, 0.0)
    return run


def test_a_refusal_teaches_how_much_is_enough():
    gate = breaker()
    for n in range(10):
        gate.started(str(n))
    gate.limited(False, None, 0.0)
    assert gate.cap == 7.0
    assert why(gate, 1.0) == "full"
    for n in range(5):
        gate.ended(str(n))
    assert why(gate, 1.0) is None
    for n in range(7):
        gate.succeeded(False, 1, float(n))
    assert gate.cap == 8.0  # raised by one after as many successes as the cap
    assert why(gate, 8.0, limit=5) == "limit"  # the operator's own is another


@pytest.mark.parametrize("targets", [1, 2, 3])
def test_the_last_target_is_never_ejected_in_silence(targets):
    selector = Selector(random=random.Random(0))
    request = RouteRequest("m", "generate", tuple(Candidate(f"{n}/m", n, 10**7, 10**7) for n in "abc"[:targets]))
    now, modes = 0.0, set()
    for number in range(60):
        decision = selector.choose(request, now)
        assert decision.target is not None
        modes.add(decision.mode)
        if decision.mode == "panic":
            assert "every target is ejected" in decision.reason
        selector.on_start(decision.target, request, now, str(number))
        selector.on_end(str(number), Outcome.failure(), now + 0.5)
        now += 1.0
    assert "panic" in modes


def test_draining_the_last_one_is_the_operators_will():
    selector = Selector(random=random.Random(0))
    request = RouteRequest("m", "generate", (Candidate("a/m", "a", 10**7, 10**7),))
    selector.drain("a/m")
    nothing = selector.choose(request, 0.0)
    assert nothing.target is None
    assert "drained" in nothing.reason
    selector.undrain("a/m")
    assert selector.choose(request, 0.0).target == "a/m"


def test_undraining_says_that_our_account_is_in_order():
    selector = Selector(random=random.Random(0))
    request = RouteRequest("m", "generate", tuple(Candidate(f"{n}/m", n, 10**7, 10**7) for n in "ab"))
    selector.on_start("a/m", request, 0.0, "1")
    selector.on_end("1", Outcome.blocked(), 0.5)
    assert selector.choose(request, 1.0).target == "b/m"
    selector.undrain("a/m")
    assert {one.target: one.excluded_by for one in selector.choose(request, 1.0).candidates} == {
        "a/m": None,
        "b/m": None,
    }
