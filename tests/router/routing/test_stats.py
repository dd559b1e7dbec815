"""What a target is believed to do: its own pace and success, and troubles that pass."""

from __future__ import annotations

import math
import random

import pytest

from router.routing import Candidate, Outcome, Prior, RouteRequest, RoutingSettings, Selector
from router.routing.breaker import Breaker
from router.routing.stats import Arm, Flight, Passing
from router.routing.work import SizeLaw, Work

ONE = Work.of(1, 1.0, None)
SETTINGS = RoutingSettings()


def arm(prior: Prior | None = None) -> Arm:
    return Arm("a/m", SizeLaw(), Breaker(SETTINGS, random.Random(1)), prior, SETTINGS)


def served(target: Arm, seconds: float, since: float, count: int = 100, every_s: float = 30.0) -> float:
    """So many answers, 0.2 in log-seconds about a median; the time after the last."""
    rng = random.Random(count)
    now = since
    for _ in range(count):
        now += every_s
        took = seconds * rng.lognormvariate(0.0, 0.2)
        target.on_success(took, ONE, now - took, now)
    target.refresh(now)
    return now


def test_it_learns_its_own_pace():
    target = arm()
    served(target, 3.0, 0.0)
    assert target.pace.mean_s == pytest.approx(3.06, rel=0.1)
    assert target.pace.off < 0.1


def test_one_answer_far_off_changes_next_to_nothing_and_several_everything():
    target = arm()
    now = served(target, 3.0, 0.0)
    before = target.pace.mean_s
    target.on_success(90.0, ONE, now, now + 90.0)
    target.refresh(now + 90.0)
    assert target.pace.mean_s < 1.3 * before
    served(target, 12.0, now + 90.0, 4)
    assert target.pace.off > 0.9
    assert target.pace.mean_s == pytest.approx(12.2, rel=0.3)


def test_what_lasts_is_no_trouble_and_what_was_before_is_not_forgotten():
    target = arm()
    now = served(target, 6.0, 0.0)
    now = served(target, 1.2, now, 90)
    assert target.pace.off < 0.1
    target.refresh(now + 3600.0)  # nothing was heard of it for an hour
    assert target.pace.mean_s < 2.0
    served(target, 6.0, now + 3600.0, 3)
    assert target.pace.mean_s == pytest.approx(6.1, rel=0.3)


def test_a_trouble_does_not_become_what_is_normal():
    target = arm()
    now = served(target, 3.0, 0.0)
    now = served(target, 12.0, now, 60)
    served(target, 3.0, now, 3)
    assert target.pace.mean_s == pytest.approx(3.06, rel=0.3)


def test_a_night_without_requests_takes_nothing_of_what_is_known():
    target = arm()
    now = served(target, 3.0, 0.0)
    before, sure = target.pace.mean_s, target.reliability.p
    target.refresh(now + 12 * 3600.0)
    assert target.pace.mean_s == pytest.approx(before, rel=0.05)
    assert target.reliability.p > sure - 0.05
    assert target.pace.sd > 0.1, "but it is less sure"


def test_time_in_one_step_or_in_many_is_the_same():
    once, p = Passing.after(600.0, 14400.0, 900.0), 0.3
    for _ in range(60):
        step = Passing.after(10.0, 14400.0, 900.0)
        p = p * step.stays + (1.0 - p) * step.goes
    assert p == pytest.approx(0.3 * once.stays + 0.7 * once.goes)
    assert Passing.after(1e9, 14400.0, 900.0) == pytest.approx((900 / 15300, 900 / 15300, 0.0))


def test_failures_of_an_hour_are_forgotten_as_a_trouble_and_remembered_as_a_habit():
    ill = arm(Prior(3.0, 9.0, 0.998))
    now = served(ill, 3.0, 0.0)
    for _ in range(3):
        now += 30.0
        ill.on_failure(1.0, 0.0, now)
    ill.refresh(now)
    assert ill.reliability.p < 0.6
    served(ill, 3.0, now, 15)
    assert ill.reliability.p > 0.95

    flaky = arm()
    now = 0.0
    for number in range(200):
        now += 30.0
        if number % 5 < 2:
            flaky.on_failure(1.0, 0.0, now)
        else:
            flaky.on_success(3.0, ONE, now - 3.0, now)
    flaky.refresh(now)
    assert flaky.reliability.well_p == pytest.approx(0.6, abs=0.08)


def test_a_target_that_hung_from_its_first_call_on_is_looked_at_again():
    selector = Selector(random=random.Random(3))
    request = RouteRequest("m", "generate", tuple(Candidate(f"{n}/m", n, 8_000_000, 8_000_000) for n in "ab"))
    rng = random.Random(4)
    tried = 0
    for number in range(1000):
        now = 30.0 * number
        target = selector.choose(request, now).target
        assert target is not None
        selector.on_start(target, request, now, str(number))
        hangs = target == "a/m" and now < 600.0
        tried += target == "a/m" and now > 600.0
        seconds = 60.0 if hangs else (2.0 if target == "a/m" else 5.0) * rng.lognormvariate(0.0, 0.4)
        selector.on_end(str(number), Outcome.failure(timed_out=True) if hangs else Outcome.success(), now + seconds)
    assert tried > 500, "it is well since minute ten, and faster"


def test_a_target_nobody_has_used_is_tried_beside_one_that_never_fails():
    selector = Selector(random=random.Random(5))
    pace = {"a/m": 0.06, "b/m": 0.04}
    request = RouteRequest("m", "generate", tuple(Candidate(n, n[0], 8_000_000, 8_000_000) for n in pace))
    last = []
    for number in range(60):
        target = selector.choose(request, float(number)).target
        assert target is not None
        selector.on_start(target, request, float(number), str(number))
        selector.on_end(str(number), Outcome.success(), number + pace[target])
        last.append(target)
    assert last[30:].count("b/m") > 20


def running(target: Arm, ages: list[float], now: float) -> None:
    for number, age in enumerate(ages):
        target.flights[f"f{number}"] = Flight(target, now - age, ONE, 0, "m", 120.0)


def test_late_calls_say_nothing_while_answers_come_as_usual():
    """Where many run at once some are always late: each alone says little, and together they would cry wolf."""
    target = arm()
    now = served(target, 3.0, 0.0)
    running(target, [4.2, 4.5, 4.8, 5.0, 5.2, 5.4, 5.6, 5.8], now)
    target.refresh(now + 0.01)
    assert target.pace.off < 0.01


def test_calls_that_are_late_together_say_that_it_is_off_once_no_answer_comes():
    target = arm()
    now = served(target, 3.0, 0.0)
    running(target, [0.5, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2], now)
    target.refresh(now + 5.0)
    assert target.pace.off > 0.9
    assert target.pace.mean_s > 6.0
    target.refresh(now + 10.0)
    assert target.reliability.ill > 0.9  # stuck rather than slow


@pytest.mark.parametrize("took", [0.03, 3.0, 300.0])
@pytest.mark.parametrize("age", [0.01, 1.0, 60.0, 4000.0])
def test_however_many_calls_run_there_is_an_estimate(took: float, age: float):
    """Hundreds in flight, against a target that is well, off or ill, known well or not at all."""
    for count in (0, 1, 3, 200):
        for last in (0.2, 1.0, 40.0):
            target = arm()
            now = served(target, took, 0.0, count)
            now = served(target, took * last, now, 20) if count else now
            for _ in range(3 * (last > 1.0)):
                target.on_failure(1.0, 0.0, now)
            running(target, [age * (1.0 + 0.001 * number) for number in range(1000)], now)
            for later in (0.0, 0.5 * took, 10.0 * took):
                target.refresh(now + later)
                assert 0.0 <= target.pace.off <= 1.0
                assert 0.0 <= target.reliability.ill <= 1.0
                assert 0.0 < target.pace.mean_s < math.inf


def test_one_that_had_become_better_before_it_failed_is_asked_again_for_that():
    """It is worth a probe for what it was last, not only for what it usually is."""
    candidates = (Candidate("a/m", "a", 8_000_000, 8_000_000), Candidate("b/m", "b", 8_000_000, 8_000_000))
    selector = Selector(priors={"a/m": Prior(6.0, 9.0, 0.99, 50), "b/m": Prior(3.0, 4.5, 0.99, 50)})
    request = RouteRequest("m", "generate", candidates)
    now = 0.0

    def serve(target: str, outcome: Outcome, seconds: float) -> None:
        selector.on_start(target, request, now, str(now))
        selector.on_end(str(now), outcome, now + seconds)

    for _ in range(40):
        serve("a/m", Outcome.success(), 1.2)
        now += 5.0
    for _ in range(3):
        serve("a/m", Outcome.failure(billed=False), 0.5)
        now += 1.0
    since = now
    decision = selector.choose(request, now)
    assert decision.target == "b/m"
    while (decision := selector.choose(request, now)).mode != "probe":
        serve("b/m", Outcome.success(), 3.0)
        now += 5.0
        assert now - since < 300.0
    assert decision.target == "a/m"
