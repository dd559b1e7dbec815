"""The rules after a failure and for a second copy, as tables: what is done, when, and what it may cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from router.errors import CONSEQUENCES, Billed, ErrorKind
from router.routing import Candidate, Decision, Outcome, Prior, RouteRequest, RoutingSettings, Selector
from router.routing.failover import BACKOFF_CAP_S, RULES, backoff_s, next_step, rescue_delay
from router.types import Preferences


def step(kind: ErrorKind = ErrorKind.SERVER_ERROR, billed: Billed = Billed.NO, **changes: Any) -> tuple[str, float]:
    values: dict[str, Any] = {
        "attempt_no": 1,
        "unsent": 0,
        "attempts": 3,
        "retry_after_cap_s": 120.0,
        "others": True,
        "remaining_s": 100.0,
        "retry_after_s": None,
        "affordable": True,
        "retry_allowed": True,
        "refused_elsewhere": False,
        "draw": 0.5,
    }
    following = next_step(kind, billed, **(values | changes))
    return following.action, following.delay_s


def test_every_kind_of_failure_has_its_rule_and_its_consequence():
    assert set(RULES) == set(CONSEQUENCES) == set(ErrorKind)


@pytest.mark.parametrize(
    ("kind", "billed", "behind", "alone"),
    [
        (ErrorKind.NOT_SENT, Billed.NO, "failover", "retry"),
        (ErrorKind.AUTH, Billed.NO, "failover", "stop"),
        (ErrorKind.RATE_LIMITED, Billed.NO, "failover", "retry"),
        (ErrorKind.BAD_REQUEST, Billed.NO, "stop", "stop"),
        (ErrorKind.REFUSED, Billed.NO, "stop", "stop"),
        (ErrorKind.SERVER_ERROR, Billed.NO, "failover", "retry"),
        (ErrorKind.SERVER_ERROR, Billed.MAYBE, "failover", "stop"),
        (ErrorKind.NO_ANSWER, Billed.MAYBE, "failover", "stop"),
        (ErrorKind.UNUSABLE, Billed.YES, "failover", "stop"),
        (ErrorKind.DOWNLOAD, Billed.YES, "stop", "stop"),
        (ErrorKind.CANCELLED, Billed.MAYBE, "stop", "stop"),
    ],
)
def test_what_follows_with_another_target_behind_and_without(kind, billed, behind, alone):
    assert step(kind, billed)[0] == behind
    assert step(kind, billed, others=False)[0] == alone


@pytest.mark.parametrize(
    ("changes", "action"),
    [
        ({"attempt_no": 3}, "stop"),
        ({"remaining_s": 0.0}, "stop"),
        ({"remaining_s": None}, "failover"),
        ({"billed": Billed.MAYBE, "affordable": False}, "stop"),  # a second bill beyond the waste budget
        ({"affordable": False}, "failover"),  # what was free may be repeated however little is left
        ({"kind": ErrorKind.REFUSED, "refused_elsewhere": True}, "failover"),
        ({"kind": ErrorKind.DOWNLOAD, "refused_elsewhere": True, "billed": Billed.YES}, "stop"),
        ({"others": False, "retry_allowed": False}, "stop"),
        ({"others": False, "attempt_no": 2}, "stop"),  # a server error is tried once more, not twice
        ({"others": False, "attempt_no": 2, "kind": ErrorKind.NOT_SENT}, "retry"),
    ],
)
def test_limits_of_attempts_time_and_money(changes, action):
    assert step(**changes)[0] == action


def test_backoff_is_drawn_between_nothing_and_a_second_that_doubles_to_thirty_two():
    assert [backoff_s(number, 1.0) for number in range(1, 9)] == [1, 2, 4, 8, 16, 32, BACKOFF_CAP_S, BACKOFF_CAP_S]
    assert [backoff_s(number, 0.0) for number in (1, 5, 50)] == [0, 0, 0]
    assert backoff_s(3, 0.25) == 1.0


def test_a_targets_own_wish_is_respected_unless_it_leaves_no_time():
    assert step(ErrorKind.RATE_LIMITED, others=False, retry_after_s=7.0) == ("retry", pytest.approx(7.05))
    assert step(ErrorKind.RATE_LIMITED, others=False, retry_after_s=7.0, remaining_s=6.0)[0] == "stop"
    assert step(ErrorKind.RATE_LIMITED, retry_after_s=7.0) == ("failover", 0.0)  # it is that target's alone


# --- the second copy --------------------------------------------------------------------------------------------

MEDIAN_S, SIGMA = 3.0, math.log(6.0 / 3.0) / 1.645  # p95 6 s
PRICE, LAMBDA = 12e6, 1.5e6  # nanos of the copy, and of a second


def due(**changes: Any) -> float | None:
    values: dict[str, Any] = {
        "stuck_share": 0.001,
        "backup_mean_s": 4.0,
        "backup_price_nanos": PRICE,
        "value_of_time": LAMBDA,
        "limit_s": 60.0,
    }
    return rescue_delay(math.log(MEDIAN_S), SIGMA, **(values | changes))


def test_it_starts_far_beyond_the_p95_and_before_the_limit():
    seconds = due()
    assert seconds is not None
    assert 6.0 < seconds < 20.0


@pytest.mark.parametrize(
    ("sooner", "later"),
    [
        ({"value_of_time": 10e6}, {"value_of_time": 0.3e6}),  # who values time more waits less
        ({"backup_price_nanos": 4e6}, {"backup_price_nanos": 200e6}),
        ({"stuck_share": 0.05}, {"stuck_share": 0.0005}),
        ({"backup_mean_s": 1.0}, {"backup_mean_s": 30.0}),
        ({"value_nanos": 5e8}, {"value_nanos": 5e6}),
    ],
)
def test_it_weighs_time_money_and_the_odds(sooner, later):
    first, second = due(**sooner), due(**later)
    assert first is not None
    assert second is None or first < second


def test_an_attempt_that_ends_before_a_copy_is_worth_its_price_has_none():
    assert due(limit_s=5.0) is None


def racing(bills: tuple[float, float, float] = (0.0, 0.0, 0.0), **settings: Any) -> tuple[Selector, RouteRequest]:
    candidates = (
        Candidate("a/m", "a", 8_000_000, 8_000_000, failure_bills=bills[0]),
        Candidate("b/m", "b", 12_000_000, 12_000_000, failure_bills=bills[1]),
        Candidate("c/m", "c", 12_000_000, 12_000_000, failure_bills=bills[2]),
    )
    priors = {"a/m": Prior(3.0, 6.0, 0.99), "b/m": Prior(3.0, 6.0, 0.99), "c/m": Prior(20.0, 40.0, 0.99)}
    return Selector(RoutingSettings(**settings), priors), RouteRequest("m", "generate", candidates)


def test_nobody_is_rescued_unless_it_is_wanted():
    machine, request = racing()
    decision = machine.choose(request, 0.0)
    assert decision.target == "a/m"
    assert machine.rescue_after(request, decision, 0.0) is None
    assert machine.rescue_after(request, decision, 0.0, wanted=True) is not None
    machine, request = racing(rescue=True)
    assert machine.rescue_after(request, machine.choose(request, 0.0), 0.0) is not None


def test_the_copy_goes_to_the_best_other_and_its_price_is_held_until_it_ends():
    machine, request = racing(waste_floor_calls=2.0)
    first = machine.choose(request, 0.0)
    chosen = [machine.rescue(request, first, 0.0, ("a/m",), 9.0, f"rescue-{number}") for number in range(3)]
    assert [decision and decision.target for decision in chosen] == ["b/m", "b/m", None]
    machine.on_end("rescue-1", Outcome.neutral(), 3.0)  # one that was never started gives back what it took
    again = machine.rescue(request, first, 3.0, ("a/m",), 12.0, "rescue-3")
    assert again is not None
    for attempt in ("rescue-0", "rescue-3"):
        machine.on_start("b/m", request, 3.0, attempt)
        machine.on_end(attempt, Outcome.success(3.0, 12_000_000), 6.0)
    assert machine._budget("m").reserved == 0


NOBODY_KNOWS = 0.5


@pytest.mark.parametrize(
    ("bills", "settings", "rescuer"),
    [
        ((0.0, 1.0, 0.0), {}, "b/m"),  # that a failure is billed is known as well
        ((0.0, NOBODY_KNOWS, 0.0), {}, "c/m"),
        ((0.0, NOBODY_KNOWS, NOBODY_KNOWS), {}, None),
        ((NOBODY_KNOWS, 0.0, 0.0), {}, None),
        ((NOBODY_KNOWS, NOBODY_KNOWS, 0.0), {"rescue_unknown_bills": True}, "b/m"),
    ],
)
def test_there_is_no_copy_where_nobody_knows_what_the_loser_costs(bills, settings, rescuer):
    machine, request = racing(bills, **settings)
    request = replace(request, preferences=Preferences(order=("a/m",)))
    first = machine.choose(request, 0.0)
    assert first.target == "a/m"
    assert (machine.rescue_after(request, first, 0.0, wanted=True) is not None) == (rescuer is not None)
    if rescuer is not None:
        copy = machine.rescue(request, first, 20.0, ("a/m",), 20.0, "copy")
        assert copy is not None
        assert copy.target == rescuer
        if bills[1] == NOBODY_KNOWS and not settings:
            assert {one.target: one.excluded_by for one in copy.candidates}["b/m"] == "bill_unknown"


def rescued(machine: Selector, request: RouteRequest, every_s: float, requests: int) -> int:
    """How many of so many requests got a copy, if all that the budgets allow do; money is no object."""
    found = 0
    for number in range(requests):
        now = number * every_s
        first = machine.choose(request, now)
        if machine.rescue(request, first, now, ("a/m",), 0.0, str(number)) is not None:
            found += 1
            machine.on_start("b/m", request, now, str(number))
            machine.on_end(str(number), Outcome.success(1.0, 0), now + 1.0)
    return found


def test_rescues_are_a_share_of_the_requests():
    machine, request = racing(waste_floor_calls=4.0)
    assert 4 + 35 <= rescued(machine, request, 3.0, 1200) <= 4 + 36
    machine, request = racing(waste_floor_calls=4.0, rescue_share=0.0)
    assert 4 + 3 <= rescued(machine, request, 3.0, 1200) <= 4 + 4  # and at least one in a quarter of an hour


def test_few_requests_still_have_a_rescue_when_it_counts():
    machine, request = racing(waste_floor_calls=4.0)
    assert rescued(machine, request, 1800.0, 40) == 40


def test_rescues_are_not_saved_up_for_longer_than_an_hour():
    machine, request = racing(waste_floor_calls=4.0)
    for number in range(6 * 1200):
        machine.choose(request, 3.0 * number)
    first = machine.choose(request, 21_600.0)
    burst = [machine.rescue(request, first, 21_600.0, ("a/m",), 0.0, str(number)) for number in range(60)]
    assert sum(one is not None for one in burst) <= 36
    machine, request = racing(waste_floor_calls=4.0, waste_share=1.0)
    machine.choose(request, 0.0)
    assert machine._budget("m").affords_rescue(0, 0.0)
    machine.choose(request, 86_400.0)
    machine._budget("m").affords_rescue(0, 86_400.0)
    assert machine._budget("m").rescues == 4.0


def silent(machine: Selector, request: RouteRequest) -> Decision:
    """Three calls at a/m that never end; the choice that two of them rest on."""
    edit = replace(request, operation="edit")
    for number, asked in enumerate((request, request, edit)):
        first = machine.choose(request, 0.0)
        assert first.target == "a/m"
        machine.on_start("a/m", asked, 0.0, f"call-{number}")
    assert machine.stuck(1.0) == []
    return first


def test_calls_at_a_target_found_stuck_are_named_once_whatever_they_do_and_cost():
    machine, request = racing((NOBODY_KNOWS, NOBODY_KNOWS, NOBODY_KNOWS))
    first = silent(machine, request)
    machine.on_end("call-1", Outcome.refused(), 1.0)
    assert machine.rescue_after(request, first, 20.0) is None
    assert machine.choose(request, 20.0).target == "b/m"
    assert machine.stuck(20.0) == ["call-0", "call-2"]
    assert machine.stuck(21.0) == []
    due_s = machine.rescue_after(request, first, 20.0)
    assert due_s is not None
    assert due_s < 20.0  # at once
    copy = machine.rescue(request, first, 20.0, ("a/m",), 20.0, "copy")
    assert copy is not None
    assert copy.target == "b/m"
    machine.on_end("call-0", Outcome.success(), 21.0)  # it lives
    assert machine.rescue_after(request, first, 21.0) is None


def test_a_quick_target_that_is_late_for_once_has_a_few_seconds_all_the_same():
    machine, request = racing()
    for number in range(40):
        machine.on_start("a/m", request, 0.1 * number, str(number))
        machine.on_end(str(number), Outcome.success(), 0.1 * number + 0.05)
    first = machine.choose(request, 5.0)
    machine.on_start("a/m", request, 5.0, "late")
    assert machine.stuck(7.0) == ["late"]
    assert machine.rescue_after(request, first, 7.0) == 5.0


def test_what_another_router_found_stuck_is_so_here():
    machine, request = racing()
    other, _ = racing()
    for each in (machine, other):
        silent(each, request)
    other.choose(request, 20.0)
    told = other.delta(20.0)
    machine.merge(told | {"replica": "other"}, 20.0)
    assert machine.stuck(0.0) == ["call-0", "call-1", "call-2"]
    machine.merge(told | {"replica": "other"}, 21.0)
    assert machine.stuck(21.0) == []


def test_a_lone_call_is_found_stuck_without_a_further_request():
    machine, request = racing()
    first = machine.choose(request, 0.0)
    machine.on_start("a/m", request, 0.0, "alone")
    assert machine.stuck(6.0) == []  # its p95
    assert machine.rescue_after(request, first, 6.0) is None
    assert machine.stuck(60.0) == ["alone"]
    assert machine.rescue_after(request, first, 60.0) is not None


def test_a_target_in_trouble_is_no_rescue():
    machine, request = racing()
    first = machine.choose(request, 0.0)
    for number in range(6):
        for target in ("b/m", "c/m"):
            machine.on_start(target, request, float(number), f"{target}{number}")
            machine.on_end(f"{target}{number}", Outcome.failure(billed=False), number + 0.5)
    assert machine.rescue(request, first, 7.0, ("a/m",), 9.0, "rescue") is None


# --- what a failure that never left may do -----------------------------------------------------------------------


def test_what_never_reached_a_provider_counts_against_no_limit():
    never = {"kind": ErrorKind.NOT_SENT, "attempt_no": 3, "unsent": 3}
    assert step(**never)[0] == "failover"
    assert step(**never, others=False)[0] == "stop"  # the same target twice, and no more
    assert step(ErrorKind.NOT_SENT, others=False, unsent=1, retry_allowed=False)[0] == "retry"
    assert step(attempt_no=5, unsent=3)[0] == "failover"
    assert step(attempt_no=5, unsent=2)[0] == "stop"


def test_never_sent_retries_leave_the_retry_budget_to_the_others():
    machine, request = racing()
    only = replace(request, candidates=request.candidates[:1])

    def after(kind: ErrorKind, unsent: int) -> str:
        return machine.after(only, kind, Billed.NO, 1, 0.0, 0.0, target="a/m", unsent=unsent).action

    assert [after(ErrorKind.NOT_SENT, 1) for _ in range(9)] == ["retry"] * 9
    assert [after(ErrorKind.RATE_LIMITED, 0) for _ in range(4)] == ["retry"] * 3 + ["stop"]


@pytest.mark.parametrize(("asked_s", "action"), [(5.0, "retry"), (120.0, "retry"), (121.0, "stop"), (86_400.0, "stop")])
def test_no_request_waits_for_longer_than_the_cap(asked_s, action):
    kind = ErrorKind.RATE_LIMITED
    assert step(kind, others=False, retry_after_s=asked_s, remaining_s=None)[0] == action
    assert step(kind, others=True, retry_after_s=asked_s)[0] == "failover"
